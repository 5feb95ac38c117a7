"""The composed forms for bfloat16 tensors on a CPU, which has no bfloat16 kernels: computed in float32, rounded once.

That is what a bfloat16 kernel with float32 accumulation gives, so a model can be examined in bfloat16, its casts and
residual sums included, on any machine (ckpt_tools/precision_card.py). Forward only; slow; asked for by
MINDGLM_OPS=cpu_bf16.
"""

import functools

import mindspore as ms
from mindspore import mint

from mindglm.ops import composed, shared


def _widened(function):
    """`function` on float32 copies of bfloat16 arguments; a float32 result is rounded to bfloat16."""

    @functools.wraps(function)
    def call(*args, **settings):
        half = [isinstance(x, ms.Tensor) and x.dtype == ms.bfloat16 for x in args]
        if not any(half):
            return function(*args, **settings)
        out = function(*(x.float() if is_half else x for x, is_half in zip(args, half)), **settings)
        return out.to(ms.bfloat16) if out.dtype == ms.float32 else out

    return call


argmin = _widened(composed.argmin)
attention = _widened(composed.attention)
conv2d = _widened(composed.conv2d)
embedding = _widened(composed.embedding)
gelu = _widened(composed.gelu)
gelu_tanh = _widened(composed.gelu_tanh)
group_norm = _widened(composed.group_norm)
layer_norm = _widened(composed.layer_norm)
linear = _widened(composed.linear)
rms_norm = _widened(composed.rms_norm)
scale_shift = _widened(composed.scale_shift)
silu = _widened(shared.silu)
swiglu = _widened(composed.swiglu)
unit = _widened(composed.unit)
where = _widened(shared.where)


def rotate_half(x_BHSD, cos, sin):
    """As `composed.rotate_half`, in the tables' dtype: a rotation in bfloat16 rounds each product."""
    rotary = cos.shape[-1]
    first, second, rest = mint.split(x_BHSD, [rotary // 2, rotary // 2, x_BHSD.shape[-1] - rotary], -1) \
        if rotary < x_BHSD.shape[-1] else (*mint.split(x_BHSD, rotary // 2, -1), None)
    first, second = shared.cast(first, cos.dtype), shared.cast(second, cos.dtype)
    x, swapped = mint.cat((first, second), -1), mint.cat((-1.0 * second, first), -1)
    turned = shared.cast(x * cos + swapped * sin, x_BHSD.dtype)
    return turned if rest is None else mint.cat((turned, rest), -1)


def token_nll(logits_NV, labels_N):
    """As `composed.token_nll`; its result is float32 in every dtype."""
    return composed.token_nll(logits_NV.float(), labels_N)
