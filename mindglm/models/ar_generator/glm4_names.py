"""Names of a GLM-4-9B-0414 checkpoint (`Glm4ForCausalLM`) and the language half of the AR generator (section 5.1).

GLM-Image was started from GLM-4: the text rows of the embedding moved behind the image ids, q and k rows permuted from
its interleaved rotation to the half-split one, everything else under another prefix. Image rows and lm_head are new.
"""

from collections.abc import Mapping

from mindglm.errors import UserError
from mindglm.models.ar_generator.hf_names import language_tensors
from mindglm.models.names import HalfSplitRows, Pair, SameRows, ShiftedRows
from mindglm.recipe.models import ArGeneratorConfig

OURS, THEIRS = "model.language_model.", "model."
EMBEDDING, HEAD = f"{OURS}embed_tokens.weight", "lm_head.weight"
NEW = (HEAD,)
"""Our tensors that GLM-4 has nothing for, besides the image rows of the embedding."""
UNUSED = (HEAD,)
"""Their tensors that we have no use for: their head knows text ids, ours image ids."""

_SAME_NUMBERS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                 "rms_norm_eps")


def name_map(config: ArGeneratorConfig, their_vocab_size: int) -> list[Pair]:
    """Our language tensors <-> theirs; every tensor of ours but NEW, every tensor of theirs but UNUSED."""
    text = config.text_config
    split = HalfSplitRows(text.head_dim, text.rotary_dim)
    found = []
    for name, shape in language_tensors(config).items():
        if name in NEW:
            continue
        rows = SameRows()
        if name == EMBEDDING:
            rows = ShiftedRows(text.vision_vocab_size, their_vocab_size)
        elif ".q_proj." in name or ".k_proj." in name:
            rows = split
        found.append(Pair(name, THEIRS + name.removeprefix(OURS), shape, rows))
    return found


def check_config(json: Mapping, config: ArGeneratorConfig, where: str) -> int:
    """The vocabulary size of a GLM-4 config.json, after checking that its structure is that of `config`.

    Raises one UserError that lists every number that differs.
    """
    text = config.text_config
    if json.get("model_type") != "glm4":
        raise UserError(f"{where}: model_type is {json.get('model_type')!r}, expected 'glm4' (GLM-4-9B-0414 and its "
                        "like; the older 'chatglm' files have other names)")
    rope = {**json, **(json.get("rope_parameters") or {})}
    theirs = {**{name: json.get(name) for name in _SAME_NUMBERS}, "head_dim": json.get("head_dim", text.head_dim),
              "rope_theta": rope.get("rope_theta"), "partial_rotary_factor": rope.get("partial_rotary_factor", 0.5)}
    faults = [f"{name} is {value}, expected {getattr(text, name)}" for name, value in theirs.items()
              if value != getattr(text, name)]
    room = text.vocab_size - text.vision_vocab_size
    vocab = json.get("vocab_size")
    if not isinstance(vocab, int) or vocab > room:
        faults.append(f"vocab_size is {vocab}, expected at most {room} (vocab_size {text.vocab_size} less the "
                      f"{text.vision_vocab_size} image ids)")
    if faults:
        raise UserError(f"{where} does not fit the AR generator it shall start: {'; '.join(faults)}. Give the "
                        "released-layout folder or config.json whose structure it has (--base, --config)")
    return vocab
