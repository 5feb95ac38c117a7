"""Objective vae_reconstruction: the loss by hand, what training and validation draw, and the measured latents."""

import types

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindglm.errors import UserError
from mindglm.objectives.vae_reconstruction import VaeReconstruction, to_model_range
from mindglm.recipe.models import VAEConfig

CONFIG = VAEConfig(block_out_channels=(4, 8), layers_per_block=1, latent_channels=2, norm_num_groups=2,
                   latents_mean=(0.0, 0.0), latents_std=(1.0, 1.0))


def options(**change):
    return types.SimpleNamespace(**{"crop_size": 8, "l1_weight": 0.5, "kl_weight": 0.01, **change})


def draw(i, purpose):
    return np.random.default_rng([i, *purpose.encode()])


def samples(count=3, height=12, width=20):
    return [{"id": str(i), "pixels": np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)}
            for i in range(count)]


@pytest.fixture(scope="module")
def objective():
    return VaeReconstruction(CONFIG, options(), seed=3)


def test_loss_by_hand(objective):
    pixels, noise = objective.collate(samples(), draw, training=True)
    loss, weight = (t.asnumpy() for t in objective.network(Tensor(pixels), Tensor(noise)))
    mean, logvar = (t.asnumpy() for t in objective.model.moments(Tensor(pixels)))
    output = objective.model.decoder(Tensor(mean + np.exp(logvar / 2) * noise)).asnumpy()
    per_sample = [
        np.mean((output[i] - pixels[i]) ** 2) + 0.5 * np.mean(np.abs(output[i] - pixels[i]))
        + 0.01 * np.mean(0.5 * (mean[i] ** 2 + np.exp(logvar[i]) - 1 - logvar[i])) for i in range(3)]
    assert weight == 3 and loss.shape == () and loss.dtype == np.float32
    np.testing.assert_allclose(loss, sum(per_sample), rtol=1e-5)


def test_training_draws_crops_flips_and_noise(objective):
    items = samples(40)
    pixels, noise = objective.collate(items, draw, training=True)
    assert pixels.shape == (40, 3, 8, 8) and pixels.dtype == np.float32
    assert noise.shape == (40, 2, 4, 4) and 0.9 < noise.std() < 1.1
    places = [_places(crop, item["pixels"]) for crop, item in zip(pixels, items)]
    assert {flip for _, _, flip in places} == {False, True}
    assert len({(top, left) for top, left, _ in places}) > 10
    again, _ = objective.collate(items, draw, training=True)
    np.testing.assert_array_equal(pixels, again)


def _places(crop, image):
    """Where a crop was cut from: (top, left, flipped); exactly one place fits."""
    whole = to_model_range(image[None])[0]
    found = []
    for flip in (False, True):
        piece = crop[:, :, ::-1] if flip else crop
        for top in range(image.shape[0] - 7):
            for left in range(image.shape[1] - 7):
                if np.array_equal(whole[:, top : top + 8, left : left + 8], piece):
                    found.append((top, left, flip))
    assert len(found) == 1
    return found[0]


def test_validation_takes_the_centre_and_the_mode(objective):
    def forbidden(i, purpose):
        raise AssertionError(purpose)

    items = samples(2)
    pixels, noise = objective.collate(items, forbidden, training=False)
    assert not noise.any()
    assert [_places(crop, item["pixels"]) for crop, item in zip(pixels, items)] == [(2, 6, False)] * 2


def test_whole_step_compiles_and_equals_pynative(objective):
    batch = [Tensor(a) for a in objective.collate(samples(), draw, training=True)]
    step = ms.value_and_grad(objective.network, None, objective.network.trainable_params(), has_aux=True)
    (loss, _), gradients = step(*batch)
    (jit_loss, _), jit_gradients = ms.jit(step)(*batch)
    np.testing.assert_allclose(jit_loss.asnumpy(), loss.asnumpy(), rtol=1e-5)
    largest = max(np.abs(g.asnumpy()).max() for g in gradients)
    assert len(gradients) == len(objective.component_tensors())
    for ours, other in zip(jit_gradients, gradients):
        np.testing.assert_allclose(ours.asnumpy(), other.asnumpy(), atol=1e-5 * largest)


def test_exported_names_are_the_released_ones(objective):
    from mindglm.models.vae import hf_names

    assert {n: p.shape for n, p in objective.component_tensors().items()} == hf_names.tensors(CONFIG)


def test_finish_measures_the_latents(objective):
    items = samples(11) + samples(3, height=16, width=8)
    config = objective.finish(iter(items))
    latents = [objective.model.moments(Tensor(to_model_range(s["pixels"][None])))[0].asnumpy()[0] for s in items]
    flat = np.concatenate([z.reshape(2, -1) for z in latents], 1)
    np.testing.assert_allclose(config.latents_mean, flat.mean(1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(config.latents_std, flat.std(1), rtol=1e-4)
    assert (config.block_out_channels, config.layers_per_block) == (CONFIG.block_out_channels, CONFIG.layers_per_block)


def test_user_mistakes(objective):
    with pytest.raises(UserError, match="multiple of 2"):
        VaeReconstruction(CONFIG, options(crop_size=9), seed=0)
    with pytest.raises(UserError, match="smaller than objective.crop_size"):
        objective.collate(samples(1, height=6), draw, training=True)
    with pytest.raises(UserError, match="no images"):
        objective.finish([])
