"""The glyph encoder: a ByT5 encoder over the bytes of the quoted strings of a prompt (reference section 2.8).

Departures from a plain transformer encoder: attention scores are not scaled by 1/sqrt(d); no linear layer has a bias;
positions enter only as a bias on the scores, looked up by bucketed distance in one table that block 0 owns and every
block uses; norms are RMS norms before each sublayer; the feed-forward is gated (tanh GELU of one half times the other).

Shapes: B strings, T bytes, D model width, H heads, K width of a head, F inner width.
"""

import functools
import math

import numpy as np
from mindspore import Tensor, mint, nn
from mindspore.ops import constexpr

from mindglm import ops
from mindglm.recipe.models import GlyphConfig

MASKED = float(np.finfo(np.float32).min)


class Linear(nn.Cell):
    """x W^T without bias; `weight` (out, in)."""

    def __init__(self, inputs: int, outputs: int, std: float):
        super().__init__()
        self.weight = ops.param((outputs, inputs), ("normal", std))

    def construct(self, x):
        return ops.linear(x, self.weight)


class Table(nn.Cell):
    """Rows looked up by an id; `weight` (rows, width)."""

    def __init__(self, rows: int, width: int, std: float):
        super().__init__()
        self.weight = ops.param((rows, width), ("normal", std))

    def construct(self, ids):
        return ops.embedding(self.weight, ids)


class RMSNorm(nn.Cell):
    """RMS norm with a weight and no bias."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = ops.param((width,), "ones")

    def construct(self, x):
        return ops.rms_norm(x, self.weight, self.eps)


class SelfAttention(nn.Cell):
    """Unscaled attention with an additive bias."""

    def __init__(self, config: GlyphConfig, owns_bias: bool):
        super().__init__()
        self.num_heads, self.d_kv = config.num_heads, config.d_kv
        inner = config.num_heads * config.d_kv
        self.q = Linear(config.d_model, inner, (config.d_model * config.d_kv) ** -0.5)
        self.k = Linear(config.d_model, inner, config.d_model**-0.5)
        self.v = Linear(config.d_model, inner, config.d_model**-0.5)
        self.o = Linear(inner, config.d_model, inner**-0.5)
        if owns_bias:
            buckets = config.relative_attention_num_buckets
            self.relative_attention_bias = Table(buckets, config.num_heads, config.d_model**-0.5)

    def construct(self, x_BTD, bias_BHTT):
        b, t, _ = x_BTD.shape
        q, k, v = (self._heads(y, b, t) for y in (self.q(x_BTD), self.k(x_BTD), self.v(x_BTD)))
        scores = mint.matmul(q, k.swapaxes(2, 3)) + bias_BHTT
        weights = mint.nn.functional.softmax(scores.float(), -1).to(v.dtype)
        y_BTI = mint.matmul(weights, v).permute(0, 2, 1, 3).reshape(b, t, self.num_heads * self.d_kv)
        return self.o(y_BTI)

    def _heads(self, x, b, t):
        return x.reshape(b, t, self.num_heads, self.d_kv).permute(0, 2, 1, 3)


class AttentionLayer(nn.Cell):
    """x + attention(norm(x))."""

    def __init__(self, config: GlyphConfig, owns_bias: bool):
        super().__init__()
        self.SelfAttention = SelfAttention(config, owns_bias)
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def construct(self, x_BTD, bias_BHTT):
        return x_BTD + self.SelfAttention(self.layer_norm(x_BTD), bias_BHTT)


class GatedFeedForward(nn.Cell):
    """wo(gelu_tanh(wi_0 x) * wi_1 x)."""

    def __init__(self, config: GlyphConfig):
        super().__init__()
        self.wi_0 = Linear(config.d_model, config.d_ff, config.d_model**-0.5)
        self.wi_1 = Linear(config.d_model, config.d_ff, config.d_model**-0.5)
        self.wo = Linear(config.d_ff, config.d_model, config.d_ff**-0.5)

    def construct(self, x_BTD):
        return self.wo(ops.gelu_tanh(self.wi_0(x_BTD)) * self.wi_1(x_BTD))


class FeedForwardLayer(nn.Cell):
    """x + feed_forward(norm(x))."""

    def __init__(self, config: GlyphConfig):
        super().__init__()
        self.DenseReluDense = GatedFeedForward(config)
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def construct(self, x_BTD):
        return x_BTD + self.DenseReluDense(self.layer_norm(x_BTD))


class Block(nn.Cell):
    """Attention, then feed-forward; `layer.0` and `layer.1` as in the checkpoint."""

    def __init__(self, config: GlyphConfig, first: bool):
        super().__init__()
        self.layer = nn.CellList([AttentionLayer(config, owns_bias=first), FeedForwardLayer(config)])

    def construct(self, x_BTD, bias_BHTT):
        return self.layer[1](self.layer[0](x_BTD, bias_BHTT))


class Encoder(nn.Cell):
    """Embedded bytes (B, T, D) and mask (B, T) -> features (B, T, D)."""

    def __init__(self, config: GlyphConfig):
        super().__init__()
        self.max_distance = config.relative_attention_max_distance
        self.num_buckets = config.relative_attention_num_buckets
        self.block = nn.CellList([Block(config, first=i == 0) for i in range(config.num_layers)])
        self.final_layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def position_bias(self, length: int):
        """Score bias (1, H, T, T) of T = `length` bytes: row = query, column = key."""
        buckets = bucket_grid(length, self.num_buckets, self.max_distance)
        table = self.block[0].layer[0].SelfAttention.relative_attention_bias
        return table(buckets).permute(2, 0, 1).reshape(1, -1, length, length)

    def construct(self, x_BTD, mask_BT):
        b, t, _ = x_BTD.shape
        hidden = mint.where(mask_BT.reshape(b, 1, 1, t), Tensor(0.0, x_BTD.dtype), Tensor(MASKED, x_BTD.dtype))
        bias = self.position_bias(t) + hidden
        for block in self.block:
            x_BTD = block(x_BTD, bias)
        return self.final_layer_norm(x_BTD)


class GlyphEncoder(nn.Cell):
    """Byte ids -> features. Parameters carry the names of the released `text_encoder` component."""

    def __init__(self, config: GlyphConfig):
        super().__init__()
        self.config = config
        self.shared = Table(config.vocab_size, config.d_model, 1.0)
        self.encoder = Encoder(config)

    def construct(self, ids_BT, mask_BT):
        """ids (B, T) int32, mask (B, T) bool (True = a byte that may be attended) -> features (B, T, D)."""
        return self.encoder(self.shared(ids_BT), mask_BT)


@constexpr
@functools.lru_cache(maxsize=64)
def bucket_grid(length: int, num_buckets: int, max_distance: int) -> Tensor:
    """Bucket of (query row, key column), int32 (length, length): a constant of the compiled graph."""
    places = np.arange(length)
    offsets = np.clip(places[None, :] - places[:, None], -max_distance, max_distance)
    return Tensor(bucket_table(num_buckets, max_distance)[offsets + max_distance])


def bucket_table(num_buckets: int, max_distance: int) -> np.ndarray:
    """Bucket of every offset key - query from -max_distance to max_distance, int32; farther ones share the ends'.

    Half the buckets serve keys to the right. Of each half, the first half holds one distance a bucket; the rest grow
    logarithmically up to max_distance. float32 throughout: at exact powers the reference rounds in float32.
    """
    offsets = np.arange(-max_distance, max_distance + 1)
    half = num_buckets // 2
    exact = half // 2
    distance = np.abs(offsets)
    safe = np.maximum(distance, 1).astype(np.float32)
    log = np.log(safe / np.float32(exact)) / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)
    far = np.minimum(exact + log.astype(np.int32), half - 1)
    return ((offsets > 0) * half + np.where(distance < exact, distance, far)).astype(np.int32)
