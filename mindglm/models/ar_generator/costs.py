"""What the units of the AR generator cost: products, bytes moved and bytes kept, for the planner (no MindSpore).

Two forms: "fused" as `mindglm.ops` runs on Ascend, "composed" as it runs on CPU. What a form keeps for the backward
pass is what its operations need there, tensor by tensor; tests/plan/test_activations.py counts it on real Cells.
Letters: s tokens of a sequence, d hidden size, kv width of keys, f intermediate size, h heads, k head dim, w bytes of
a number.
"""

from mindglm.models.ar_generator import flops, hf_names
from mindglm.plan.workload import Unit, Work
from mindglm.recipe.models import ArGeneratorConfig, TextConfig

LAUNCHES = {"embedding": (14, 2), "layer": (22, 44), "head": (12, 12)}
"""Kernels of the fused form, forward and backward: those that the compiled gradient has, and the copies of heads."""
FLOAT = 4
NORM_PRODUCTS = 4
"""FLOPs for each number that a norm of the composed form takes: it sums rows and spreads factors by products."""


def units(config: ArGeneratorConfig, length: int, form: str, weight_bytes: int) -> tuple[Unit, ...]:
    """The units in order, for one sequence of `length` tokens.

    form: "fused" | "composed"; weight_bytes: 2 (bfloat16) or 4 (float32).
    """
    text = config.text_config
    names, own = flops.unit_names(config), _tensors_by_unit(config)
    model = flops.unit_flops(config, length)
    parts = [_embedding(text, length, weight_bytes), *[_layer(text, length, form, weight_bytes)] * (len(names) - 2),
             _head(text, length, form, weight_bytes)]
    sent = length * text.hidden_size
    return tuple(
        Unit(name, own[i], forward, backward, model[i], kept, sent * weight_bytes if layer else kept, sent, layer)
        for i, (name, (forward, backward, kept)) in enumerate(zip(names, parts))
        for layer in [0 < i < len(names) - 1])


def _tensors_by_unit(config: ArGeneratorConfig) -> list[tuple]:
    """(name, shape) of the parameters of each unit."""
    count = config.text_config.num_hidden_layers + 2
    found: list[list] = [[] for _ in range(count)]
    for name, shape in hf_names.language_tensors(config).items():
        if ".layers." in name:
            found[1 + int(name.split(".layers.")[1].split(".")[0])].append((name, shape))
        else:
            found[0 if "embed_tokens" in name else count - 1].append((name, shape))
    return [tuple(tensors) for tensors in found]


def _embedding(text: TextConfig, s: int, w: int) -> tuple[Work, Work, int]:
    rows = s * text.hidden_size * w
    table = text.vocab_size * text.hidden_size * w  # the gradient of the table is made whole
    return Work(moved=2 * rows, launches=LAUNCHES["embedding"][0]), \
        Work(moved=2 * rows + table, launches=LAUNCHES["embedding"][1]), s * 4


def _layer(text: TextConfig, s: int, form: str, w: int) -> tuple[Work, Work, int]:
    d, kv, f = text.hidden_size, text.num_key_value_heads * text.head_dim, text.intermediate_size
    heads, width = text.num_attention_heads, text.head_dim
    linear = 2 * s * (d * (2 * d + 2 * kv) + 3 * d * f)
    # Norms and sums of the residual, rotation, swiglu, and the copies that bring heads in front of positions.
    moved = w * s * (4 * 2 * d + 2 * 3 * d + 2 * (d + kv) + 3 * f + 2 * (2 * d + 2 * kv))
    if form == "fused":
        attention = 2 * s * (s + 1) * d  # the kernel skips what causality hides
        forward = Work(linear, attention, moved, LAUNCHES["layer"][0])
        backward = Work(2 * linear, attention * 5 // 2, 2 * moved, LAUNCHES["layer"][1])
    else:
        attention, rotation = 4 * s * s * d, 2 * s * (d + kv) * width
        spread = rotation + 4 * NORM_PRODUCTS * s * d
        scores = 4 * heads * s * s * FLOAT
        forward = Work(linear + spread, attention, 2 * moved + scores, 2 * LAUNCHES["layer"][0])
        backward = Work(2 * linear + spread, 2 * attention, 4 * moved + 2 * scores, 2 * LAUNCHES["layer"][1])
    return forward, backward, sum(kept_by_layer(text, s, form, w).values())


def kept_by_layer(text: TextConfig, s: int, form: str, w: int) -> dict[str, int]:
    """Bytes that a layer keeps for its backward pass, by what they are; one sequence of s tokens."""
    d, kv, f = text.hidden_size, text.num_key_value_heads * text.head_dim, text.intermediate_size
    heads, width = text.num_attention_heads, text.head_dim
    if form == "fused":
        return {
            "inputs of the four norms": 4 * s * d * w,
            "inputs of the projections": 2 * s * d * w,
            "query, key, value": s * (d + 2 * kv) * w,
            "attention's result, as the kernel gives it and as the projection takes it": 2 * s * d * w,
            "gate and up, and their product": 3 * s * f * w,
            "statistics of norms and attention": 4 * s * FLOAT + 2 * heads * s * 8 * FLOAT,
        }
    return {
        "the four norms: input, square, factor, normed, weight": 24 * s * d * w,
        "inputs of the projections, a copy each": 5 * s * d * w,
        "query and key before rotation, and its tables": (3 * s * (d + kv) + 2 * width**2) * w,
        "query, key, value": s * (d + 2 * kv) * w,
        "weights of attention, as softmax gives them and as the product takes them": 2 * heads * s * s * FLOAT,
        "gate, its silu, up, and their product": 4 * s * f * w,
        "statistics of norms": 4 * s * FLOAT,
    }


def _head(text: TextConfig, s: int, form: str, w: int) -> tuple[Work, Work, int]:
    d, classes = text.hidden_size, text.vision_vocab_size
    linear = 2 * s * d * classes
    moved = 2 * s * d * w + s * classes * (w + 4 * FLOAT)
    # The loss is the head's: log-probabilities, labels, which of them count, and their weights.
    kept = (2 if form == "fused" else 7) * s * d * w + s * (classes + 4) * FLOAT + s
    more, norm = (1, 0) if form == "fused" else (2, NORM_PRODUCTS * s * d)
    return Work(linear + norm, 0, moved, more * LAUNCHES["head"][0]), \
        Work(2 * linear + norm, 0, 2 * moved, more * LAUNCHES["head"][1]), kept
