"""Which encoders made a dataset: one hash a component, over the tensors that encoding reads.

The language model and the decoders are left out: training them must not make a dataset look foreign. No MindSpore here.
"""

import hashlib
import json
from pathlib import Path

from mindglm.checkpoint.released import component_config, component_header, read_component_raw
from mindglm.checkpoint.tensors import to_float32
from mindglm.errors import UserError

ENCODERS = {
    "vision_language_encoder": ("model.visual.", "model.vqmodel.quant"),
    "vae": ("encoder.",),
    "text_encoder": ("shared.", "encoder.block.", "encoder.final_layer_norm."),
}
"""Component -> prefixes of the tensors that encode."""

_PROCESSOR_FILES = ("tokenizer.json", "preprocessor_config.json")


def encoder_hashes(model_dir) -> dict[str, str]:
    """{component: hash} of the encoders in a released-layout folder. Raises UserError when one is missing."""
    root = Path(model_dir)
    if not root.is_dir():
        raise UserError(f"model: {root} is not a folder; give a folder in the released GLM-Image layout")
    hashes = {}
    for component, prefixes in ENCODERS.items():
        names = sorted(name for name in component_header(root, component) if name.startswith(prefixes))
        if not names:
            raise UserError(f"{root / component}: none of its tensors starts with {' or '.join(prefixes)}; expected "
                            "a GLM-Image component with its encoder")
        digest = hashlib.sha256()
        for name, raw in read_component_raw(root, component, names).items():
            digest.update(f"{name} {raw.shape}\n".encode())
            digest.update(to_float32(raw).tobytes())
        digest.update(json.dumps(_encoder_config(root, component), sort_keys=True).encode())
        hashes[component] = digest.hexdigest()[:32]
    hashes["processor"] = _processor_hash(root)
    return hashes


def _encoder_config(root: Path, component: str) -> dict:
    """The numbers of config.json that change the encoding without changing a tensor."""
    config = component_config(root, component)
    if component == "vae":
        return {key: config.get(key) for key in ("latents_mean", "latents_std", "norm_num_groups")}
    if component == "text_encoder":
        keys = ("num_heads", "relative_attention_num_buckets", "relative_attention_max_distance", "layer_norm_epsilon")
        return {key: config.get(key) for key in keys}
    return {"num_heads": config.get("vision_config", {}).get("num_heads")}


def _processor_hash(root: Path) -> str:
    digest = hashlib.sha256()
    for name in _PROCESSOR_FILES:
        path = root / "processor" / name
        if not path.is_file():
            raise UserError(f"{path}: no such file; expected a folder in the released GLM-Image layout")
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def differences(dataset: dict[str, str], model: dict[str, str]) -> list[str]:
    """Components whose encoders differ between a dataset and a model."""
    return [component for component in model if dataset.get(component) != model[component]]
