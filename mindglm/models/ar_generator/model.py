"""The AR generator: a GLM-4 decoder that reads a prompt and writes image codes.

Departures from the plain decoder: RMS norms before and after both sub-layers ("sandwich"; the released name
`post_attention_layernorm` is the norm *before* the MLP); few key/value heads; only part of each head rotates, and its
frequencies follow three position axes (time, row, column) in contiguous sections; gate and up projections fused, gate
first; biases on q, k, v only; the head covers image codes alone and is not tied to the embedding.

Shape letters: B batch, S sequence, T cached + new keys, D hidden, H heads, G key/value heads, K head dim, R rotary
dims, F intermediate, C classes of the head. Source: `modeling_glm_image.py` of transformers 5.23.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint, nn
from mindspore import ops as ms_ops

from mindglm import ops
from mindglm.recipe.models import ArGeneratorConfig, TextConfig

Cache = tuple[tuple[Tensor, Tensor], ...]
"""Per layer (k_BGTK after rotation, v_BGTK)."""


class Linear(nn.Cell):
    """x W^T + b with W stored (out, in)."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True, std: float = 0.02):
        super().__init__()
        self.weight = ops.param((outputs, inputs), ("normal", std))
        self.bias = ops.param((outputs,)) if bias else None

    def construct(self, x):
        return ops.linear(x, self.weight, self.bias)


class RMSNorm(nn.Cell):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = ops.param((width,), "ones")
        self.eps = eps

    def construct(self, x):
        return ops.rms_norm(x, self.weight, self.eps)


class Embedding(nn.Cell):
    def __init__(self, rows: int, width: int):
        super().__init__()
        self.weight = ops.param((rows, width), ("normal", 0.02))

    def construct(self, ids):
        return ops.embedding(self.weight, ids)


class Rotary(nn.Cell):
    """cos and sin tables from three-axis positions, computed in float32."""

    def __init__(self, config: TextConfig):
        super().__init__()
        dims = config.rotary_dim
        frequency = 1.0 / np.float32(config.rope_theta) ** (np.arange(0, dims, 2, dtype=np.float32) / np.float32(dims))
        axis = np.repeat(np.arange(3), config.mrope_section)  # which axis frequency j follows
        rows = [np.where(axis == a, frequency, 0).astype(np.float32).reshape(1, 1, 1, dims // 2) for a in range(3)]
        self.time, self.row, self.column = (Tensor(row) for row in rows)

    def construct(self, position_ids_3BS):
        _, b, s = position_ids_3BS.shape
        time, row, column = mint.split(position_ids_3BS.astype(ms.float32).reshape(3 * b, 1, s, 1), b, 0)
        # Products and sums instead of a matmul: exact, as two of the three terms are zero.
        angle = time * self.time + row * self.row + column * self.column
        angle = ops.concat((angle, angle), -1)
        return mint.cos(angle), mint.sin(angle)  # (B, 1, S, R)


class Attention(nn.Cell):
    def __init__(self, config: TextConfig):
        super().__init__()
        d, self.head_dim = config.hidden_size, config.head_dim
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.q_proj = Linear(d, d)
        self.k_proj = Linear(d, self.kv_heads * self.head_dim)
        self.v_proj = Linear(d, self.kv_heads * self.head_dim)
        self.o_proj = Linear(d, d, bias=False)

    def split(self, x_BSD, heads: int):
        """(B, S, heads * K) -> (B, heads, S, K)"""
        b, s, _ = x_BSD.shape
        return x_BSD.reshape(b, s, heads, self.head_dim).permute(0, 2, 1, 3)

    def construct(self, x_BSD, cos, sin, mask=None, past=None):
        b, s, d = x_BSD.shape
        q = ops.rotate_half(self.split(self.q_proj(x_BSD), self.heads), cos, sin)
        k = ops.rotate_half(self.split(self.k_proj(x_BSD), self.kv_heads), cos, sin)
        v = self.split(self.v_proj(x_BSD), self.kv_heads)
        if past is not None:
            k, v = ops.concat((past[0], k), 2), ops.concat((past[1], v), 2)
        o = ops.attention(q, k, v, mask=mask, causal=mask is None)
        return self.o_proj(o.permute(0, 2, 1, 3).reshape(b, s, d)), (k, v)


class MLP(nn.Cell):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.gate_up_proj = Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def construct(self, x):
        return self.down_proj(ops.swiglu(self.gate_up_proj(x)))


class Layer(nn.Cell):
    def __init__(self, config: TextConfig):
        super().__init__()
        d, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(d, eps)
        self.post_self_attn_layernorm = RMSNorm(d, eps)
        self.post_attention_layernorm = RMSNorm(d, eps)  # in spite of its name: before the MLP
        self.post_mlp_layernorm = RMSNorm(d, eps)

    def construct(self, x_BSD, cos, sin, mask=None, past=None):
        attended, present = self.self_attn(self.input_layernorm(x_BSD), cos, sin, mask, past)
        x = x_BSD + self.post_self_attn_layernorm(attended)
        x = x + self.post_mlp_layernorm(self.mlp(self.post_attention_layernorm(x)))
        return x, present


class LanguageModel(nn.Cell):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.CellList([Layer(config) for _ in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = Rotary(config)

    def construct(self, input_ids_BS, position_ids_3BS, mask=None, cache=None):
        x = self.embed_tokens(input_ids_BS)
        cos, sin = self.rotary(position_ids_3BS)
        if cos.dtype != x.dtype:  # the rotation itself runs in the model's dtype
            cos, sin = cos.astype(x.dtype), sin.astype(x.dtype)
        presents = ()
        for i, layer in enumerate(self.layers):
            x, present = layer(x, cos, sin, mask, None if cache is None else cache[i])
            presents = presents + (present,)
        return self.norm(x), presents


class Trunk(nn.Cell):
    """The `model.` level of the released names."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.language_model = LanguageModel(config)


class ArGenerator(nn.Cell):
    """Prompt and codes so far -> logits of the next code.

    Parameters are named as released: `model.language_model.*`, `lm_head.weight`. The vision tower and the VQ of the
    same component are `vision.VisionTokenizer`.
    """

    def __init__(self, config: ArGeneratorConfig):
        super().__init__()
        self.config = config
        text = config.text_config
        self.model = Trunk(text)
        self.lm_head = Linear(text.hidden_size, text.vision_vocab_size, bias=False)

    def construct(self, input_ids_BS, position_ids_3BS, mask=None):
        """Logits of every position, causal.

        Args:
            input_ids_BS: int32. position_ids_3BS: int32 (positions.py).
            mask: bool (B, S), False at padding that stands before valid tokens. Not needed for padding on the right,
                which causality hides.
        Returns:
            (B, S, C) in the model's dtype.
        """
        hidden = self.model.language_model(input_ids_BS, position_ids_3BS, prefill_mask(mask))[0]
        return self.lm_head(hidden)

    def prefill(self, input_ids_BS, position_ids_3BS, mask=None) -> tuple[Tensor, Cache]:
        """Read the prompts: logits (B, C) after the last column, and the cache. Arguments as `construct`."""
        hidden, cache = self.model.language_model(input_ids_BS, position_ids_3BS, prefill_mask(mask))
        return self.lm_head(last(hidden)), cache

    def decode(self, input_ids_B1, position_ids_3B1, cache: Cache, mask=None) -> tuple[Tensor, Cache]:
        """One step: logits (B, C) after the new token, and the cache grown by it.

        mask: bool (B, T), False at cached padding; T counts the new token.
        """
        mask = None if mask is None else mask.reshape(mask.shape[0], 1, 1, mask.shape[1])
        hidden, cache = self.model.language_model(input_ids_B1, position_ids_3B1, mask, cache)
        return self.lm_head(last(hidden)), cache


def last(x_BSD):
    """The last column (B, D); narrowed, as the plain index has no kernel of its own on Ascend."""
    return mint.narrow(x_BSD, 1, x_BSD.shape[1] - 1, 1).reshape(x_BSD.shape[0], x_BSD.shape[2])


def prefill_mask(valid_BS):
    """Causal mask (B, 1, S, S) that hides padded keys; None stays None.

    Every query sees itself, padding too: a row without any key would be undefined and could spread to valid rows.
    """
    if valid_BS is None:
        return None
    b, s = valid_BS.shape
    index = ms_ops.arange(s)
    query, key = index.reshape(1, 1, s, 1), index.reshape(1, 1, 1, s)
    past = mint.logical_and(key <= query, valid_BS.reshape(b, 1, 1, s))
    return mint.logical_or(past, key == query)
