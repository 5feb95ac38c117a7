"""The four components with weights, by folder name: where their names, dtypes and configs are described."""

import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

from mindglm.errors import UserError
from mindglm.models.ar_generator import config as ar_config
from mindglm.models.ar_generator import hf_names as ar_names
from mindglm.models.dit_decoder import config as dit_config
from mindglm.models.dit_decoder import hf_names as dit_names
from mindglm.models.glyph_encoder import config as glyph_config
from mindglm.models.glyph_encoder import hf_names as glyph_names
from mindglm.models.names import Pair
from mindglm.models.vae import config as vae_config
from mindglm.models.vae import hf_names as vae_names
from mindglm.recipe.models import ArGeneratorConfig, DiTConfig, GlyphConfig, VAEConfig


@dataclass(frozen=True)
class Component:
    """A folder of the released layout."""

    names: ModuleType
    """`models/<name>/hf_names.py`"""
    config: ModuleType
    """`models/<name>/config.py`"""

    @property
    def dtype(self) -> str:
        """What the release stores: "bfloat16" | "float32"."""
        return self.names.DTYPE

    @property
    def aliases(self) -> Mapping[str, str]:
        """Released names under which a tensor may stand a second time, or instead of its own."""
        return self.names.ALIASES

    def name_map(self, config_json: Mapping) -> list[Pair]:
        """Ours <-> released, for the structure that a config.json describes; UserError when it describes none."""
        try:
            return self.names.name_map(self.config.from_hf(config_json))
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise UserError(f"{self.names.COMPONENT}/config.json: describes no model ({error!r}); download it "
                            "again") from error


COMPONENTS = {
    ar_names.COMPONENT: Component(ar_names, ar_config),
    dit_names.COMPONENT: Component(dit_names, dit_config),
    vae_names.COMPONENT: Component(vae_names, vae_config),
    glyph_names.COMPONENT: Component(glyph_names, glyph_config),
}
"""Folder name -> component."""

OF_STRUCTURE = {
    ArGeneratorConfig: ar_names.COMPONENT, DiTConfig: dit_names.COMPONENT, VAEConfig: vae_names.COMPONENT,
    GlyphConfig: glyph_names.COMPONENT,
}
"""Structure of `mindglm.recipe.models` -> folder name."""

RELEASED = pathlib.Path(__file__).parents[1] / "assets" / "glm_image"
"""<component>/config.json of zai-org/GLM-Image: the released structure without its weights."""
