"""Tower and VQ against the public torch class: patches, position sampling, blocks, features, distances, codes."""

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
from tests.golden import REPO, fixture, load, rel_error

TOLERANCE = 1e-5
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


def test_patch_embed_and_blocks(model, data):
    tower = model.model.visual
    for rows, h, w in images(data):
        x = tower.patch_embed(Tensor(data["in.pixel_values"][rows])[None])
        assert rel_error(x[0], data["patch_embed"][rows]) <= TOLERANCE
        at = tower.embeddings(h, w)
        assert rel_error(at, data["pos_embed"][rows]) <= TOLERANCE
        x = x + at
        assert rel_error(x[0], data["embeddings"][rows]) <= TOLERANCE
        for i, block in enumerate(tower.blocks):
            x = block(x)
            assert rel_error(x[0], data[f"block{i}"][rows]) <= TOLERANCE


@pytest.mark.parametrize("name", ["same", "up", "thin"])
def test_position_sampling(model, data, name):
    _, h, w = data[f"interp.{name}.grid"][0].tolist()
    assert rel_error(model.model.visual.embeddings(h, w), data[f"interp.{name}.pos_embed"]) <= TOLERANCE
    if name != "up":  # the fixture holds no pixels for it
        features = model(Tensor(data[f"interp.{name}.pixel_values"]), h, w)
        assert rel_error(features, data[f"interp.{name}.out"]) <= TOLERANCE


def test_features_distances_and_codes(model, data):
    vq, found = model.model.vqmodel, []
    for i, (rows, h, w) in enumerate(images(data)):
        features = model(Tensor(data["in.pixel_values"][rows]), h, w)
        assert rel_error(features, data[f"feat{i}"].reshape(-1, h * w).T) <= TOLERANCE
        z = vq.quant_conv(features)
        assert rel_error(z, data[f"quant_conv{i}"].reshape(-1, h * w).T) <= TOLERANCE
        assert rel_error(vq.quantize(vq(features)), data[f"distances{i}"]) <= TOLERANCE
        codes = model.quantize(features)
        assert codes.dtype == ms.int32
        unit = vq.quantize.unit_codebook()[codes]
        assert rel_error(unit, data[f"quantized{i}"].reshape(-1, h * w).T) <= TOLERANCE
        found.append(codes.asnumpy())
    assert np.array_equal(np.concatenate(found), data["codes"])


def test_codes_of_source_images(model):
    """The codes of the image-to-image fixtures, several images a prompt."""
    data = fixture("ar_i2i")
    for prefix, grids in (("multi.", [(2, 3), (4, 2)]), ("batch.", [(2, 3), (2, 2)])):
        pixels, found, start = data[f"{prefix}in.pixel_values"], [], 0
        for h, w in grids:
            found.append(model.quantize(model(Tensor(pixels[start : start + h * w]), h, w)).asnumpy())
            start += h * w
        assert np.array_equal(np.concatenate(found), data[f"{prefix}codes"])


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
