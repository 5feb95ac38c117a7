"""Image -> codes: the vision tower and the cosine vector quantiser of the AR generator.

Departures from a plain ViT: no class token and no final norm; one learned position table, sampled bilinearly at the
centres of the patches, serves every image size; the codebook is compared by cosine (both sides of unit length).

Shape letters: B images of one size, h w patches a side, N = h * w, P values of a patch in (channel, y, x) order,
D tower width, E codebook width, K codes. Source: `modeling_glm_image.py` of transformers 5.23, sections 2.3 and 2.4.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint, nn
from mindspore import ops as ms_ops

from mindglm import ops
from mindglm.models.ar_generator.model import Embedding, Linear
from mindglm.recipe.models import ArGeneratorConfig, VisionConfig, VQConfig


class LayerNorm(nn.Cell):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = ops.param((width,), "ones")
        self.bias = ops.param((width,))
        self.eps = eps

    def construct(self, x):
        return ops.layer_norm(x, self.weight, self.bias, self.eps)


class PointwiseConv(nn.Cell):
    """A convolution whose window is its stride, applied to rows that hold one window each: a linear map."""

    def __init__(self, outputs: int, window: tuple[int, int, int]):
        super().__init__()
        fan_in = window[0] * window[1] * window[2]
        self.weight = ops.param((outputs, *window), ("normal", fan_in**-0.5))
        self.bias = ops.param((outputs,))

    def construct(self, x):
        x = ops.cast(x, self.weight.dtype)
        return ops.linear(x, self.weight.reshape(self.weight.shape[0], -1), self.bias)


class PatchEmbed(nn.Cell):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.proj = PointwiseConv(config.hidden_size, (config.in_channels, config.patch_size, config.patch_size))

    def construct(self, patches):
        return self.proj(patches)


class PositionTable(nn.Cell):
    """The learned table and its bilinear sampling (half-pixel centres, clamped at the border, in float32)."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.side = config.table_side
        self.position_embedding = Embedding(self.side**2, config.hidden_size)

    def along(self, count: int):
        """Of `count` centres along one side: table index below, index above, weight of the one above."""
        at = (ms_ops.arange(count).astype(ms.float32) + 0.5) * (self.side / count) - 0.5
        at = mint.clamp(at, 0.0, float(self.side - 1))
        low = ms_ops.floor(at)
        return low.astype(ms.int32), mint.clamp(low + 1.0, 0.0, float(self.side - 1)).astype(ms.int32), at - low

    def construct(self, h: int, w: int):
        """(h * w, D) in the table's dtype."""
        r0, r1, fr = self.along(h)
        c0, c1, fc = self.along(w)
        fr, fc = fr.reshape(h, 1, 1), fc.reshape(1, w, 1)
        row0, row1 = r0.reshape(h, 1) * self.side, r1.reshape(h, 1) * self.side
        c0, c1 = c0.reshape(1, w), c1.reshape(1, w)
        top = self.corner(row0 + c0) * (1.0 - fc) + self.corner(row0 + c1) * fc
        bottom = self.corner(row1 + c0) * (1.0 - fc) + self.corner(row1 + c1) * fc
        sampled = top * (1.0 - fr) + bottom * fr
        return sampled.reshape(h * w, -1).to(self.position_embedding.weight.dtype)

    def corner(self, index_hw):
        return self.position_embedding(index_hw).float()


class VisionAttention(nn.Cell):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.heads = config.num_heads
        self.qkv = Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = Linear(config.hidden_size, config.hidden_size)

    def construct(self, x_BND):
        b, n, d = x_BND.shape
        q, k, v = mint.split(self.qkv(x_BND), d, -1)
        o = ops.attention(self.split(q), self.split(k), self.split(v))
        return self.proj(o.permute(0, 2, 1, 3).reshape(b, n, d))

    def split(self, x_BND):
        """(B, N, D) -> (B, heads, N, D / heads)"""
        b, n, d = x_BND.shape
        return x_BND.reshape(b, n, self.heads, d // self.heads).permute(0, 2, 1, 3)


class VisionMLP(nn.Cell):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.fc1 = Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size)

    def construct(self, x):
        return self.fc2(ops.gelu(self.fc1(x)))


class VisionBlock(nn.Cell):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.norm1 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.norm2 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.attn = VisionAttention(config)
        self.mlp = VisionMLP(config)

    def construct(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTower(nn.Cell):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.patch_embed = PatchEmbed(config)
        self.embeddings = PositionTable(config)
        self.blocks = nn.CellList([VisionBlock(config) for _ in range(config.depth)])

    def construct(self, patches_BhwP):
        """(B, h, w, P) -> (B, h * w, D)"""
        b, h, w, p = patches_BhwP.shape
        x = self.patch_embed(patches_BhwP.reshape(b, h * w, p)) + self.embeddings(h, w)
        for block in self.blocks:
            x = block(x)
        return x


class Quantizer(nn.Cell):
    """The codebook, stored at any length and compared at unit length."""

    def __init__(self, config: VQConfig):
        super().__init__()
        self.embedding = Embedding(config.num_embeddings, config.embed_dim)

    def unit_codebook(self):
        """(K, E)"""
        return ops.unit(ops.cast(self.embedding.weight, ms.float32))

    def construct(self, unit_z):
        """Squared distances (..., K) of unit vectors (..., E) to every code."""
        codebook = self.unit_codebook()
        near = mint.matmul(unit_z, codebook.swapaxes(0, 1))
        return (unit_z * unit_z).sum(-1, keepdims=True) + (codebook * codebook).sum(-1) - 2.0 * near


class VQModel(nn.Cell):
    def __init__(self, config: VQConfig):
        super().__init__()
        self.quantize = Quantizer(config)
        self.quant_conv = PointwiseConv(config.embed_dim, (config.latent_channels, 1, 1))
        self.post_quant_conv = PointwiseConv(config.latent_channels, (config.embed_dim, 1, 1))

    def construct(self, features):
        """Tower features (..., D) -> unit vectors (..., E)."""
        return ops.unit(ops.cast(self.quant_conv(features), ms.float32))  # near codes: half precision would mix them up

    def codes(self, unit_z):
        """Nearest code of unit vectors (..., E): int32 (...); the first on ties."""
        return ops.argmin(self.quantize(unit_z))


class Trunk(nn.Cell):
    """The `model.` level of the released names."""

    def __init__(self, config: ArGeneratorConfig):
        super().__init__()
        self.visual = VisionTower(config.vision_config)
        self.vqmodel = VQModel(config.vq_config)


class VisionTokenizer(nn.Cell):
    """Images -> codes. Parameters are named as released: `model.visual.*`, `model.vqmodel.*`."""

    def __init__(self, config: ArGeneratorConfig):
        super().__init__()
        self.config = config
        self.model = Trunk(config)

    def construct(self, pixel_values_NP, h: int, w: int):
        """Patches (n * h * w, P) of n images of h x w patches -> features (n * h * w, D)."""
        patches = pixel_values_NP.reshape(-1, h, w, pixel_values_NP.shape[-1])
        return self.features(patches).reshape(pixel_values_NP.shape[0], -1)

    def features(self, patches_BhwP):
        """(B, h, w, P) -> (B, h * w, D)"""
        return self.model.visual(patches_BhwP)

    def unit_vectors(self, patches_BhwP):
        """(B, h, w, P) -> encoder outputs of unit length (B, h * w, E), what the codebook is compared with."""
        return self.model.vqmodel(self.features(patches_BhwP))

    def quantize(self, features):
        """Tower features (..., D) -> codes int32 (...)."""
        return self.model.vqmodel.codes(self.model.vqmodel(features))

    def encode(self, images) -> Tensor:
        """Images (n, 3, H, W) float in [-1, 1], H and W multiples of the patch -> codes int32 (n, H / 16, W / 16)."""
        patches = Tensor(patchify(np.asarray(images, np.float32), self.config.vision_config.patch_size))
        n, h, w, _ = patches.shape
        return self.quantize(self.features(patches)).reshape(n, h, w)


def patchify(images_BCHW: np.ndarray, patch: int) -> np.ndarray:
    """(B, C, H, W) -> (B, H / patch, W / patch, C * patch * patch), each patch in (channel, y, x) order."""
    b, c, height, width = images_BCHW.shape
    assert height % patch == 0 and width % patch == 0, f"{height} x {width} is not made of {patch} x {patch} patches"
    x = images_BCHW.reshape(b, c, height // patch, patch, width // patch, patch)
    return np.ascontiguousarray(x.transpose(0, 2, 4, 1, 3, 5)).reshape(b, height // patch, width // patch, -1)
