"""Numerical building blocks, one function each; the device's form is chosen once, here, at import.

Ascend gets fused kernels (`ascend.py`); elsewhere the same functions are composed from operations that have CPU kernels
(`composed.py`). Models import only this module, so nothing in a model knows the device. `MINDGLM_OPS=ascend` forces
the Ascend branch where there is no such device: front-end compilation checks use it, computing with it would fail.
"""

import os

import mindspore as ms

from mindglm.ops.parameters import init_parameters, param
from mindglm.ops.shared import cast, concat, pad_right_bottom, silu, upsample_nearest2, where


def _device() -> str:
    asked = os.environ.get("MINDGLM_OPS")
    if asked:
        assert asked in {"cpu", "ascend", "cpu_bf16"}, f"MINDGLM_OPS={asked}: expected cpu, ascend or cpu_bf16"
        return asked
    return "ascend" if ms.get_current_device().device_target == "Ascend" else "cpu"


DEVICE = _device()

if DEVICE == "ascend":
    from mindglm.ops import ascend as _form
else:
    # On few cores the default asynchronous dispatch is 2-15 times slower, and errors surface at a later operation.
    ms.runtime.launch_blocking()
    from mindglm.ops import composed as _form

argmin = _form.argmin
attention = _form.attention
conv2d = _form.conv2d
embedding = _form.embedding
end_to_end = _form.end_to_end
gelu = _form.gelu
gelu_tanh = _form.gelu_tanh
group_norm = _form.group_norm
layer_norm = _form.layer_norm
linear = _form.linear
rms_norm = _form.rms_norm
rotate_half = _form.rotate_half
scale_shift = _form.scale_shift
sum_of_squares = _form.sum_of_squares
swiglu = _form.swiglu
token_nll = _form.token_nll
unit = _form.unit

if DEVICE == "cpu_bf16":  # the precision card examines bfloat16 on a machine without bfloat16 kernels
    from mindglm.ops.widened import (  # noqa: F811
        argmin, attention, conv2d, embedding, gelu, gelu_tanh, group_norm, layer_norm, linear, rms_norm, rotate_half,
        scale_shift, silu, swiglu, token_nll, unit, where,
    )

__all__ = [
    "DEVICE", "argmin", "attention", "cast", "concat", "conv2d", "embedding", "end_to_end", "gelu", "gelu_tanh",
    "group_norm", "init_parameters", "layer_norm", "linear", "pad_right_bottom", "param", "rms_norm", "rotate_half",
    "scale_shift", "silu", "sum_of_squares", "swiglu", "token_nll", "unit", "upsample_nearest2", "where",
]
