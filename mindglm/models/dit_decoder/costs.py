"""What the units of the DiT cost: products, bytes moved and bytes kept, for the planner (no MindSpore).

Forms and what they keep as in ar_generator/costs.py. Letters: n image tokens, t glyph tokens, s = n + t, d width,
e width of temb, h heads, w bytes of a number.
"""

import dataclasses

from mindglm.models.dit_decoder import flops, hf_names
from mindglm.plan.workload import Unit, Work
from mindglm.recipe.models import DiTConfig

LAUNCHES = {"inputs": (24, 16), "block": (51, 87), "output": (8, 6)}
"""Kernels of the fused form, forward and backward: those that the compiled gradient has, and the copies of heads."""
FLOAT = 4
NORM_PRODUCTS, SPREAD_PRODUCTS = 8, 2
"""FLOPs for each number, of a norm and of a vector spread over tokens: the composed form does both by products."""


def units(config: DiTConfig, n: int, t: int, form: str, weight_bytes: int) -> tuple[Unit, ...]:
    """The units in order, for one sample of n image tokens and t glyph tokens; form and weight_bytes as elsewhere."""
    names, own = flops.unit_names(config), _tensors_by_unit(config)
    model = flops.unit_flops(config, n, t)
    d, e = config.hidden_size, config.time_embed_dim
    parts = [_inputs(config, n, t, model[0], form, weight_bytes),
             *[_block(config, n, t, form, weight_bytes)] * (config.num_layers - 1),
             _last_block(config, n, t, form, weight_bytes),
             _output(config, n, model[-1], form, weight_bytes)]
    again = ((n + t) * d + e) * weight_bytes
    sent = [(n + t) * d + e] * (len(names) - 2) + [n * d + e] * 2  # behind the last block no text is left
    return tuple(
        Unit(name, own[i], forward, backward, model[i], kept, again if block else kept, sent[i], block)
        for i, (name, (forward, backward, kept)) in enumerate(zip(names, parts))
        for block in [0 < i < len(names) - 1])


def _tensors_by_unit(config: DiTConfig) -> list[tuple]:
    count = config.num_layers + 2
    found: list[list] = [[] for _ in range(count)]
    for name, shape in hf_names.tensors(config).items():
        if name.startswith("transformer_blocks."):
            found[1 + int(name.split(".")[1])].append((name, shape))
        else:
            found[count - 1 if name.startswith(("norm_out.", "proj_out.")) else 0].append((name, shape))
    return [tuple(tensors) for tensors in found]


def _inputs(config: DiTConfig, n: int, t: int, linear: int, form: str, w: int) -> tuple[Work, Work, int]:
    d, e, patch = config.hidden_size, config.time_embed_dim, config.patch_size**2
    # No gradient goes into the latents, the glyph features, the waves of time and the numbers of the size.
    first = 2 * (n * config.in_channels * patch * d + t * config.text_embed_dim * d
                 + e * (e + 4 * config.condition_dim))
    moved = w * (n * d * 12 + t * d * 4)
    table = config.prior_vq_quantizer_codebook_size * d * w
    # Patches, what the products take and what the activations take; codes and which are withheld; waves and numbers.
    gelu = 2 if form == "fused" else 4
    kept = (n * (config.in_channels * patch + 3 * d) + t * (config.text_embed_dim + gelu * d)
            + 6 * e + 4 * config.condition_dim) * w + n * 5
    more = 1 if form == "fused" else 2
    return Work(linear, 0, moved, more * LAUNCHES["inputs"][0]), \
        Work(2 * linear - first, 0, 2 * moved + table, more * LAUNCHES["inputs"][1]), kept


def _block(config: DiTConfig, n: int, t: int, form: str, w: int) -> tuple[Work, Work, int]:
    d, e, s, heads = config.hidden_size, config.time_embed_dim, n + t, config.num_attention_heads
    linear, attention = 2 * (s * 12 * d * d + e * 12 * d), 4 * s * s * d
    # Modulations, norms of queries and keys, rotation in float32, gelu, gates and sums, copies of heads.
    moved = s * d * (w * (2 * 8 + 2 * 2 + 2 * 4 + 2 * 6 + 8) + FLOAT * 2 * 3)
    if form == "fused":
        forward = Work(linear, attention, moved, LAUNCHES["block"][0])
        backward = Work(2 * linear, attention * 5 // 2, 2 * moved, LAUNCHES["block"][1])
    else:
        spread = 4 * s * d * config.attention_head_dim + (4 * NORM_PRODUCTS + 6 * SPREAD_PRODUCTS) * s * d
        scores = 4 * heads * s * s * FLOAT
        forward = Work(linear + spread, attention, 2 * moved + scores, 2 * LAUNCHES["block"][0])
        backward = Work(2 * linear + spread, 2 * attention, 4 * moved + 2 * scores, 2 * LAUNCHES["block"][1])
    return forward, backward, sum(kept_by_block(config, n, t, form, w).values())


def _last_block(config: DiTConfig, n: int, t: int, form: str, w: int) -> tuple[Work, Work, int]:
    """As `_block`, but nothing reads its text: the text's feed-forward has no gradient."""
    forward, backward, kept = _block(config, n, t, form, w)
    text = 2 * t * 8 * config.hidden_size**2
    return forward, dataclasses.replace(backward, linear=backward.linear - 2 * text), kept


def kept_by_block(config: DiTConfig, n: int, t: int, form: str, w: int) -> dict[str, int]:
    """Bytes that a block keeps for its backward pass, by what they are; one sample."""
    d, s, heads, k = config.hidden_size, n + t, config.num_attention_heads, config.attention_head_dim
    vectors = (8 * d + config.time_embed_dim) * w
    statistics = 4 * s * (1 + heads) * FLOAT
    if form == "fused":
        return {
            "inputs of the two norms, the normed, and the modulated": 6 * s * d * w,
            "query and key before their norms": 2 * s * d * w,
            "query, key, value": 3 * s * d * w,
            "attention's result, as the kernel gives it and as the projection takes it": 2 * s * d * w,
            "what the gates multiply": 2 * s * d * w,
            "gelu's input and result": 8 * s * d * w,
            "vectors of the modulation": vectors,
            "statistics of norms and attention": statistics + 2 * heads * s * 8 * FLOAT,
        }
    return {
        "the two norms: centred, its square, normed, and every token's scale": 8 * s * d * w,
        "what the gates multiply, and every token's gate": 4 * s * d * w,
        "inputs of the five projections, a copy each": 5 * s * d * w,
        "norms of query and key, and these before rotation": 6 * s * d * w,
        "tables of rotation": (4 * s * d + 2 * k * k) * w,
        "query, key, value": 3 * s * d * w,
        "weights of attention, as softmax gives them and as the product takes them": 2 * heads * s * s * FLOAT,
        "gelu's input, result and parts": 28 * s * d * w,
        "vectors of the modulation": vectors,
        "statistics of norms": statistics,
    }


def _output(config: DiTConfig, n: int, linear: int, form: str, w: int) -> tuple[Work, Work, int]:
    d = config.hidden_size
    moved = 6 * n * d * w
    velocity = config.out_channels * config.patch_size**2 * FLOAT  # the loss is the output's: its error
    kept = (3 if form == "fused" else 5) * n * d * w + n * (velocity + 2 * FLOAT) + (config.time_embed_dim + 2 * d) * w
    more, norm = (1, 0) if form == "fused" else (2, (NORM_PRODUCTS + 2 * SPREAD_PRODUCTS) * n * d)
    return Work(linear + norm, 0, moved, more * LAUNCHES["output"][0]), \
        Work(2 * linear + norm, 0, 2 * moved, more * LAUNCHES["output"][1]), kept
