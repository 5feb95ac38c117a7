"""What is examined: the components of a model folder as Cells on this device, in the dtype of the run."""

import contextlib
import functools
import pathlib

import mindspore as ms
import numpy as np
from mindspore import Tensor

from mindglm import ops  # noqa: F401  (sets up the device before the first computation)
from mindglm.checkpoint.released import component_config, read_json
from mindglm.errors import UserError
from mindglm.generate.ar_sampler import ArSampler
from mindglm.generate.loading import load_component
from mindglm.generate.pipeline import Pipeline
from mindglm.models.ar_generator.config import from_hf as ar_config
from mindglm.models.ar_generator.model import ArGenerator
from mindglm.models.ar_generator.processor import Processor
from mindglm.models.ar_generator.vision import VisionTokenizer
from mindglm.models.dit_decoder.config import from_hf as dit_config
from mindglm.models.dit_decoder.config import scheduler_from_hf
from mindglm.models.dit_decoder.model import DiTDecoder
from mindglm.models.dit_decoder.scheduler import Scheduler
from mindglm.models.glyph_encoder.config import from_hf as glyph_config
from mindglm.models.glyph_encoder.model import GlyphEncoder
from mindglm.models.vae.config import from_hf as vae_config
from mindglm.models.vae.model import VAE

MS_DTYPES = {"fp32": ms.float32, "fp16": ms.float16, "bf16": ms.bfloat16}
AR, DIT, VAE_FOLDER, GLYPH = "vision_language_encoder", "transformer", "vae", "text_encoder"


class Subject:
    """The Cells of one released-layout folder; each is loaded when a family first asks for it.

    Raises UserError when the folder, a component or a tensor is missing.
    """

    def __init__(self, repo, dtype: str = "fp32"):
        self.repo, self.dtype = pathlib.Path(repo), dtype
        self.ms_dtype = MS_DTYPES[dtype]
        if not self.repo.is_dir():
            raise UserError(f"model folder {self.repo}: no such folder; expected one in the released GLM-Image layout")

    @functools.cached_property
    def ar(self) -> ArGenerator:
        return self._load(ArGenerator(self.ar_config), AR)

    @functools.cached_property
    def tokenizer(self) -> VisionTokenizer:
        return self._load(VisionTokenizer(self.ar_config), AR)

    @functools.cached_property
    def dit(self) -> DiTDecoder:
        return self._load(DiTDecoder(self.dit_config), DIT)

    @functools.cached_property
    def vae(self) -> VAE:
        return self._load(VAE(vae_config(component_config(self.repo, VAE_FOLDER))), VAE_FOLDER)

    @functools.cached_property
    def glyph_encoder(self) -> GlyphEncoder:
        return self._load(GlyphEncoder(glyph_config(component_config(self.repo, GLYPH))), GLYPH)

    @functools.cached_property
    def pipeline(self) -> Pipeline:
        """The whole model, with the public pipeline's habits; the AR generator and the tokenizer in float32."""
        made = Pipeline.from_pretrained(self.repo, hf_compatible=True, with_images=True)
        # Hundreds of equal steps: compiled where `mindglm generate` compiles them.
        made.ar_sampler = ArSampler(made.ar, made.ar_sampler.sampling, compiled=ops.DEVICE == "cpu")
        for cell, component in ((made.dit, DIT), (made.vae, VAE_FOLDER)):
            self._in_dtype(cell, component)
        return made

    @functools.cached_property
    def ar_config(self):
        return ar_config(component_config(self.repo, AR))

    @functools.cached_property
    def dit_config(self):
        return dit_config(component_config(self.repo, DIT))

    @functools.cached_property
    def processor(self) -> Processor:
        return Processor.from_pretrained(self.repo)

    @property
    def scheduler(self) -> Scheduler:
        return Scheduler(self.scheduler_config)

    @functools.cached_property
    def scheduler_config(self):
        return scheduler_from_hf(read_json(self.repo / "scheduler" / "scheduler_config.json"))

    def fill(self, cell, component: str):
        """Weights of the component into another Cell with the same parameter names."""
        return self._load(cell, component)

    def floats(self, array) -> Tensor:
        """A float input in the dtype of the run."""
        return Tensor(np.ascontiguousarray(array, np.float32)).astype(self.ms_dtype)

    def numbers(self, array) -> Tensor:
        """Times, sizes and weights: float32 in every run."""
        return Tensor(np.ascontiguousarray(array, np.float32))

    def bools(self, array) -> Tensor:
        """A mask."""
        return Tensor(np.ascontiguousarray(array, bool))

    def ids(self, array, limit: int | None = None) -> Tensor:
        """Integers as int32. UserError at `limit` or above: the fixtures then belong to another model."""
        array = np.ascontiguousarray(array)
        if limit is not None and array.size and array.max() >= limit:
            raise UserError(f"the fixtures hold id {array.max()}, but the model in {self.repo} has {limit}; "
                            "give the repo/ and the fixtures/ of the same make_golden.py run")
        return Tensor(array.astype(np.int32))

    @property
    def differentiates(self) -> bool:
        """Whether gradients can be taken: a CPU computes bfloat16 forward only (mindglm/ops/widened.py)."""
        return ops.DEVICE != "cpu_bf16"

    def _load(self, cell, component: str):
        load_component(cell, self.repo, component)
        return self._in_dtype(cell, component).set_train(False)

    def _in_dtype(self, cell, component: str):
        """The glyph encoder stays in float32, in which it is released."""
        if self.dtype != "fp32" and component != GLYPH:
            for parameter in cell.get_parameters():
                parameter.set_dtype(self.ms_dtype)
        return cell


def array(tensor) -> np.ndarray:
    """A host copy in float32 (or the integers as they are); bfloat16 has no NumPy form of its own."""
    if tensor.dtype in (ms.bfloat16, ms.float16):
        tensor = tensor.astype(ms.float32)
    return tensor.asnumpy().copy()


@contextlib.contextmanager
def watched(cells: dict):
    """Collects the outputs of Cells while the block runs: {name: list of outputs, one a call}, as they complete."""
    seen, handles = {}, []
    for name, cell in cells.items():
        def keep(cell, inputs, output, name=name):
            seen.setdefault(name, []).append(output)

        handles.append(cell.register_forward_hook(keep))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
