"""Number formats that a device cannot compute in are refused with the reason; the others are set."""

import mindspore as ms
import pytest

from mindglm import ops
from mindglm.errors import UserError
from mindglm.recipe import schema
from mindglm.train import precision
from tests.train import fake

HALF = schema.PrecisionSection(params_dtype="bfloat16")


def test_cpu_refuses_bfloat16_and_ascend_refuses_strict(monkeypatch, tmp_path):
    half, strict = fake.make_recipe(tmp_path, precision=HALF), fake.make_recipe(tmp_path, strict_numerics=True)
    precision.check(strict)
    precision.check(fake.make_recipe(tmp_path))
    with pytest.raises(UserError, match="no bfloat16 kernels for matmul"):
        precision.check(half)
    monkeypatch.setattr(ops, "DEVICE", "ascend")
    precision.check(half)
    with pytest.raises(UserError, match="strict_numerics.*have not been measured"):
        precision.check(strict)


def test_weights_take_the_dtype_that_is_asked_or_the_device_prefers(monkeypatch):
    parameters = fake.Objective().model.trainable_params()
    precision.apply(parameters, schema.PrecisionSection())
    assert {p.dtype for p in parameters} == {ms.float32}
    precision.apply(parameters, HALF)
    assert {p.dtype for p in parameters} == {ms.bfloat16}
    monkeypatch.setattr(ops, "DEVICE", "ascend")
    assert precision.params_dtype(schema.PrecisionSection()) == ms.bfloat16
