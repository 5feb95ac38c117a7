"""Reference images in the DiT against the public cache modes (fixture families `dit_i2i` and `train_dit`).

write = `DiTDecoder.write`, read = `references` handed to the pass, skip = no references in the pass.
"""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindglm.checkpoint.released import component_config
from mindglm.models.dit_decoder import config as dit_config
from mindglm.models.dit_decoder.model import DiTDecoder, spread
from mindglm.models.dit_decoder.references import join_images, stack_samples
from tests import golden

TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4


@pytest.fixture(scope="module")
def dit():
    return golden.load(DiTDecoder(dit_config.from_hf(component_config(golden.REPO, "transformer"))), "transformer")


@pytest.fixture(scope="module")
def data():
    return golden.fixture("dit_i2i")


@pytest.fixture(scope="module")
def written(dit, data):
    """(velocity, cache) of the three reference images."""
    return [dit.write(Tensor(data[f"ref{i}.lat"]), Tensor(data[f"ref{i}.ids"][None].astype(np.int32)),
                      Tensor(data[f"ref{i}.size"].astype(np.float32))) for i in range(3)]


def passed(data, prefix, drop=False, repeat=1):
    """Arguments of the Cell from the fixture's inputs, every sample `repeat` times."""
    names = ("hidden_states", "encoder_hidden_states", "prior_token_id", "timestep", "target_size", "crop_coords")
    latents, glyph, ids, time, size, crop = (np.repeat(data[f"{prefix}.in.{name}"], repeat, 0) for name in names)
    return [Tensor(a) for a in (latents, glyph, ids.astype(np.int32), np.full(ids.shape, drop), time,
                                size.astype(np.float32), crop.astype(np.float32))]


def test_write(dit, data, written):
    for i in range(2):
        assert golden.rel_error(written[i][0], data[f"A.write_out{i}"]) < TOLERANCE
    joined = join_images([cache for _, cache in written[:2]])
    for layer in sorted({0, len(joined) - 1}):
        for tensor, name in zip(joined[layer], "kv"):
            stored = data[f"A.cache{layer}.{name}"].transpose(0, 2, 1, 3)  # theirs is (n, R, H, K)
            assert golden.rel_error(tensor, stored) < TOLERANCE


def test_read_and_skip(dit, data, written):
    references = join_images([cache for _, cache in written[:2]])
    assert golden.rel_error(dit(*passed(data, "A"), None, references), data["A.read"]) < TOLERANCE
    without = dit(*passed(data, "A", drop=True))
    assert golden.rel_error(without, data["A.skip"]) < TOLERANCE
    assert golden.rel_error(without, data["A.plain_uncond"]) < TOLERANCE
    leaked = dit(*passed(data, "A", drop=True), None, references)
    assert golden.rel_error(leaked, data["A.skip"]) > 1e-3


def test_images_are_read_in_order_but_attention_does_not_care(dit, data, written):
    turned = join_images([cache for _, cache in written[1::-1]])
    assert golden.rel_error(turned[0][0], data["A.cache0.k"].transpose(0, 2, 1, 3)) > 1e-3
    assert golden.rel_error(dit(*passed(data, "A"), None, turned), data["A.read"]) < TOLERANCE


def test_one_sample_shared_by_a_batch(dit, data, written):
    references = join_images([cache for _, cache in written[:2]])
    assert golden.rel_error(dit(*passed(data, "B"), None, references), data["B.read_shared"]) < TOLERANCE


def test_a_sample_each_and_several_pictures_of_a_sample(dit, data, written):
    references, mask = stack_samples([cache for _, cache in written[:2]])
    assert mask is None
    assert golden.rel_error(dit(*passed(data, "B"), None, references), data["C.read_two"]) < TOLERANCE
    four = passed(data, "B", repeat=2)
    assert golden.rel_error(dit(*four, None, references), data["C.read_four"]) < TOLERANCE


def test_copies_of_a_sample_stand_beside_each_other():
    np.testing.assert_array_equal(spread(Tensor([[1], [2]]), 4).asnumpy(), [[1], [1], [2], [2]])
    np.testing.assert_array_equal(spread(Tensor([[3]]), 3).asnumpy(), [[3]] * 3)


def test_references_of_different_length_do_not_disturb_each_other(dit, data, written):
    """Padding of the shorter sample is masked; glyph padding too, in the same pass."""
    caches = [written[0][1], join_images([written[1][1], written[2][1]])]
    references, mask = stack_samples(caches)
    assert mask.sum(1).tolist() == [6, 14] and references[0][0].shape[2] == 14
    both = passed(data, "B")
    together = dit(*both, None, references, Tensor(mask)).asnumpy()
    glyph = Tensor(np.pad(both[1].asnumpy(), ((0, 0), (3, 0), (0, 0))))
    text_mask = Tensor(np.repeat(np.arange(8)[None] >= 3, 2, 0))
    padded = dit(both[0], glyph, *both[2:], text_mask, references, Tensor(mask)).asnumpy()
    for i, cache in enumerate(caches):
        alone = dit(*[argument[i:i + 1] for argument in both], None, cache)
        assert golden.rel_error(together[i:i + 1], alone.asnumpy()) < TOLERANCE
        assert golden.rel_error(padded[i:i + 1], alone.asnumpy()) < TOLERANCE
    assert golden.rel_error(dit(*both, None, references)[:1], together[:1]) > 1e-3


def test_compiled_passes_are_the_plain_ones(dit, data, written):
    @ms.jit
    def read(latents, glyph, ids, drop, time, size, crop, references):
        return dit(latents, glyph, ids, drop, time, size, crop, None, references)

    references = join_images([cache for _, cache in written[:2]])
    assert golden.rel_error(read(*passed(data, "A"), ms.mutable(references)), data["A.read"]) < TOLERANCE


def test_loss_and_gradients_through_the_cache(dit):
    """Image-to-image training: the references are read in the same step, with gradients through their keys."""
    arrays = golden.fixture("train_dit")
    data = {name.removeprefix("i2i."): value for name, value in arrays.items() if name.startswith("i2i.")}
    tensors = {name: Tensor(data[name]) for name in ("noisy", "text", "prior_token_drop", "ref_latent")}
    ids, reference_ids = (Tensor(data[name].astype(np.int32)) for name in ("prior_token_id", "ref_ids"))
    target = Tensor(data["noise"] - data["latent"])
    size, reference_size = (Tensor(np.tile(8 * np.float32(data[name].shape[2:]), (len(data[name]), 1)))
                            for name in ("noisy", "ref_latent"))

    def loss():
        _, references = dit.write(tensors["ref_latent"], reference_ids.reshape(1, -1), reference_size)
        velocity = dit(tensors["noisy"], tensors["text"], ids, tensors["prior_token_drop"], Tensor(data["t"] - 1), size,
                       Tensor(np.zeros((len(ids), 2), np.float32)), None, references)
        return ((velocity - target) * (velocity - target)).mean()

    parameters = list(dit.trainable_params())
    value, gradients = ms.value_and_grad(loss, None, parameters)()
    assert abs(float(value) / float(data["loss"][0]) - 1) < TOLERANCE
    expected = {name.removeprefix("grad."): value for name, value in data.items() if name.startswith("grad.")}
    assert set(expected) == {p.name for p in parameters}
    for parameter, gradient in zip(parameters, gradients):
        assert golden.rel_error(gradient, expected[parameter.name]) < GRADIENT_TOLERANCE, parameter.name
