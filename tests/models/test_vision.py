"""Tower and VQ: whole images, compilation, ties, names; their numbers are compared in tests/parity."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindglm import ops
from mindglm.checkpoint.released import component_config
from mindglm.models.ar_generator import hf_names
from mindglm.models.ar_generator.config import from_hf
from mindglm.models.ar_generator.processor import tokenizer_view
from mindglm.models.ar_generator.vision import VisionTokenizer, patchify
from tests.golden import REPO, fixture, load

CONFIG = from_hf(component_config(REPO, hf_names.COMPONENT))


@pytest.fixture(scope="module")
def model():
    return load(VisionTokenizer(CONFIG), hf_names.COMPONENT)


@pytest.fixture(scope="module")
def data():
    return fixture("vision_vq")


def images(data):
    """The packed images of the fixture: (rows of the packing, h, w)."""
    start = 0
    for _, h, w in data["in.image_grid_thw"].tolist():
        yield slice(start, start + h * w), h, w
        start += h * w


def test_encode_is_features_of_patches(model, data):
    """encode() takes whole images; a batch gives what each image gives alone."""
    rng = np.random.default_rng(0)
    pictures = rng.uniform(-1, 1, (3, 3, 32, 48)).astype(np.float32)
    codes = model.encode(pictures).asnumpy()
    assert codes.shape == (3, 2, 3) and codes.dtype == np.int32
    for picture, expected in zip(pictures, codes, strict=True):
        assert np.array_equal(model.encode(Tensor(picture[None])).asnumpy()[0], expected)
        patches = patchify(picture[None], 16).reshape(6, -1)
        assert np.array_equal(patches[4], picture[:, 16:32, 16:32].reshape(-1))
        assert np.array_equal(model.quantize(model(Tensor(patches), 2, 3)).asnumpy(), expected.reshape(-1))


def test_compiles_as_one_graph(model, data):
    @ms.jit
    def compiled(patches):
        return model.model.vqmodel.codes(model.unit_vectors(patches))

    rows, h, w = next(images(data))
    codes = compiled(Tensor(data["in.pixel_values"][rows].reshape(1, h, w, -1)))
    assert np.array_equal(codes.asnumpy()[0], data["codes"][rows])


def test_first_code_wins_a_tie():
    model = VisionTokenizer(CONFIG)
    ops.init_parameters(model, 0)
    table = model.model.vqmodel.quantize.embedding.weight
    values = table.asnumpy().copy()
    values[7] = 2.0 * values[3]  # the same direction
    table.set_data(Tensor(values))
    near = Tensor(values[3:4] / np.linalg.norm(values[3]))
    assert model.model.vqmodel.codes(near).asnumpy().tolist() == [3]


def test_names_are_those_of_the_checkpoint():
    built = {p.name: p.shape for p in VisionTokenizer(CONFIG).get_parameters()}
    assert built == hf_names.tokenizer_tensors(CONFIG)


def test_tokenizer_view():
    rng = np.random.default_rng(1)
    picture = rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)
    assert np.allclose(tokenizer_view(picture, 4, 6).transpose(1, 2, 0), picture / 127.5 - 1, atol=1e-6)
    assert tokenizer_view(picture, 2, 3).shape == (3, 32, 48)
    white = np.full((10, 20, 3), 255, np.uint8)
    assert np.all(tokenizer_view(white, 16, 8) == 1)
