"""Which number formats a run uses: the recipe's `precision` section against what the device can."""

from mindspore import bfloat16, float32

from mindglm import ops
from mindglm.errors import UserError

DTYPES = {"float32": float32, "bfloat16": bfloat16}


def check(recipe) -> None:
    """UserError when this device cannot compute as the recipe asks."""
    if ops.DEVICE == "ascend":
        if recipe.strict_numerics:
            raise UserError("strict_numerics: true, but this is an Ascend, where equal bits in every layout have not "
                            "been measured and are not promised; leave it out, or run on CPU")
    elif "bfloat16" in (recipe.precision.params_dtype, recipe.precision.compute_dtype):
        raise UserError("precision.params_dtype is bfloat16, but this machine computes on the CPU, where MindSpore has "
                        "no bfloat16 kernels for matmul, softmax and sums; set it to float32 or auto")


def params_dtype(section):
    """The dtype of the weights, in which the model also computes."""
    if section.params_dtype == "auto":
        return bfloat16 if ops.DEVICE == "ascend" else float32
    return DTYPES[section.params_dtype]


def reduce_dtype(section):
    """The dtype in which gradients travel between data-parallel ranks."""
    return DTYPES[section.reduce_dtype]


def apply(parameters, section) -> None:
    """Give all Parameters the dtype of the recipe. The optimizer then keeps float32 masters of those it trains."""
    dtype = params_dtype(section)
    for parameter in parameters:
        if parameter.dtype != dtype and parameter.dtype in DTYPES.values():
            parameter.set_dtype(dtype)
