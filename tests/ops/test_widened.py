"""The forms for bfloat16 on a CPU: none is forgotten, and each is the float32 form, rounded once."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindglm import ops
from mindglm.ops import composed, widened

AS_COMPOSED = {"DEVICE", "cast", "concat", "end_to_end", "init_parameters", "pad_right_bottom", "param",
               "sum_of_squares", "upsample_nearest2"}
"""Names of mindglm.ops that need no kernel of arithmetic, or see float32 only."""


def random(*shape):
    return Tensor(np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32))


def test_every_computing_operation_has_its_form():
    lacking = [name for name in ops.__all__ if name not in AS_COMPOSED and not hasattr(widened, name)]
    assert not lacking, f"add them to mindglm/ops/widened.py: {lacking}"


def test_bfloat16_is_computed_in_float32_and_rounded():
    x, w, b = (random(*shape).astype(ms.bfloat16) for shape in ((2, 3, 8), (5, 8), (5,)))
    found = widened.linear(x, w, b)
    expected = composed.linear(x.float(), w.float(), b.float()).astype(ms.bfloat16)
    assert found.dtype == ms.bfloat16
    np.testing.assert_array_equal(found.float().asnumpy(), expected.float().asnumpy())
    assert widened.linear(x.float(), w.float(), b.float()).dtype == ms.float32


@pytest.mark.parametrize("rotary", [6, 8])
def test_rotation_is_that_of_the_composed_form(rotary):
    x, cos, sin = random(2, 3, 4, 8), random(2, 1, 4, rotary), random(2, 1, 4, rotary)
    found = widened.rotate_half(x, cos, sin)
    np.testing.assert_allclose(found.asnumpy(), composed.rotate_half(x, cos, sin).asnumpy(), rtol=0, atol=1e-6)
    half = widened.rotate_half(*(t.astype(ms.bfloat16) for t in (x, cos, sin)))
    assert half.dtype == ms.bfloat16
    np.testing.assert_allclose(half.float().asnumpy(), found.asnumpy(), rtol=0, atol=0.1)
    assert widened.rotate_half(x.astype(ms.bfloat16), cos, sin).dtype == ms.bfloat16
