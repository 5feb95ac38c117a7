"""The VAE: clamped moments, names, configuration; its numbers are compared in tests/parity."""

import dataclasses
import json

import numpy as np
import pytest
from mindspore import Tensor

from mindglm.errors import UserError
from mindglm.models.vae import config as vae_config
from mindglm.models.vae import flops, hf_names
from mindglm.models.vae.model import VAE
from mindglm.recipe.models import VAEConfig
from tests.golden import REPO, fixture, load, rel_error

TOLERANCE = 1e-5

RELEASED = VAEConfig(
    block_out_channels=(128, 512, 1024, 1024), layers_per_block=3, latent_channels=16, norm_num_groups=32,
    latents_mean=(0.0,) * 16, latents_std=(1.0,) * 16,
)


def released_json():
    return json.loads((REPO / "vae" / "config.json").read_text())


@pytest.fixture(scope="module")
def vae():
    return load(VAE(vae_config.from_hf(released_json())), "vae")


@pytest.fixture(scope="module")
def golden():
    return fixture("vae")


def test_moments_mode_and_normalised_latents(vae, golden):
    image = Tensor(golden["in.image"])
    assert rel_error(vae.encoder(image), golden["moments"]) < TOLERANCE
    mean, logvar = vae.moments(image)
    assert rel_error(mean, golden["mode"]) < TOLERANCE
    assert rel_error(logvar, np.clip(golden["moments"][:, 4:], -30, 20)) < TOLERANCE
    assert rel_error(vae.encode(image), golden["normalized"]) < TOLERANCE


def test_cell_has_exactly_the_names_and_shapes_of_the_list(vae):
    assert {p.name: p.shape for p in vae.get_parameters()} == hf_names.tensors(vae.config)


def test_released_names_and_size():
    found = hf_names.tensors(RELEASED)
    assert len(found) == 288
    encoder = sum(int(np.prod(s)) for n, s in found.items() if n.startswith("encoder"))
    assert (encoder, sum(int(np.prod(s)) for s in found.values()) - encoder) == (172_443_808, 233_656_835)
    assert found["encoder.down_blocks.1.resnets.0.conv_shortcut.weight"] == (512, 128, 1, 1)
    assert found["decoder.up_blocks.2.resnets.0.conv1.weight"] == (512, 1024, 3, 3)


def test_config_round_trip():
    given = released_json()
    config = vae_config.from_hf(given)
    written = vae_config.to_hf(config)
    assert {**written, "_diffusers_version": given["_diffusers_version"]} == given
    assert vae_config.from_hf(written) == config


@pytest.mark.parametrize("change", [{"use_quant_conv": True}, {"latents_mean": None}])
def test_config_of_another_structure_is_refused(change):
    with pytest.raises(UserError, match=next(iter(change)) if "use_quant_conv" in change else "null"):
        vae_config.from_hf({**released_json(), **change})


def test_flops_of_a_one_level_vae_by_hand():
    config = dataclasses.replace(RELEASED, block_out_channels=(8,), layers_per_block=1, latent_channels=2)
    inner = 8 * 8 * 9
    encoder = 3 * 8 * 9 + 2 * inner + 4 * inner + 8 * 4 * 9
    decoder = 2 * 8 * 9 + 4 * inner + 4 * inner + 8 * 3 * 9
    assert flops.encode_flops(config, 4, 6) == 2 * 24 * encoder
    assert flops.decode_flops(config, 4, 6) == 2 * 24 * decoder


def test_flops_count_the_size_of_every_level():
    config = dataclasses.replace(RELEASED, block_out_channels=(8, 8), layers_per_block=1, latent_channels=2)
    inner = 8 * 8 * 9
    full = 3 * 8 * 9 + 2 * inner
    quarter = inner + 2 * inner + 4 * inner + 8 * 4 * 9
    assert flops.encode_flops(config, 8, 8) == 2 * (64 * full + 16 * quarter)
