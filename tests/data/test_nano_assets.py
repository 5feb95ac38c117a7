"""The shipped frozen components of the nano model: small, whole, and made by the recipes as they stand."""

import json
import pathlib
import subprocess

import numpy as np
import pytest
from mindspore import Tensor

from mindglm.checkpoint import released
from mindglm.data import nano_assets
from mindglm.data.encoders import Encoders
from mindglm.data.loader import ShardDataset
from mindglm.errors import UserError
from mindglm.recipe import load

ROOT = pathlib.Path(__file__).parents[2]
NANO = ROOT / "mindglm" / "assets" / "nano"


def test_made_by_the_recipes_as_they_stand():
    """When this fails, a recipe was edited after the assets were made: bash launch/make_nano_assets.sh"""
    made_by = json.loads(NANO.with_suffix(".json").read_text())["made_by"]
    assert made_by == nano_assets.recipe_hashes(ROOT / "recipes" / "nano")


def test_small_enough_to_ship():
    assert sum(path.stat().st_size for path in NANO.rglob("*") if path.is_file()) <= 4 * 2**20


def test_fits_the_recipes_that_build_on_it():
    ar, dit = (load(ROOT / "recipes" / "nano" / f"{name}.yaml").model.model_config for name in ("ar", "dit"))
    shipped = released.component_config(NANO, "vision_language_encoder")
    assert shipped["vq_config"]["num_embeddings"] == ar.num_codes == dit.prior_vq_quantizer_codebook_size
    assert shipped["vision_config"]["hidden_size"] == ar.vision_config.hidden_size
    assert released.component_config(NANO, "vae")["latent_channels"] == dit.in_channels
    assert released.component_config(NANO, "text_encoder")["d_model"] == dit.text_embed_dim
    tokenizer = json.loads((NANO / "processor" / "tokenizer.json").read_text())
    assert len(tokenizer["model"]["vocab"]) == ar.text_config.vocab_size
    assert tokenizer["model"]["vocab"]["<|image|>"] == ar.image_token_id


def test_an_unfinished_chain_is_refused(tmp_path):
    with pytest.raises(UserError, match="no vae, vision_language_encoder, text_encoder"):
        nano_assets.run(tmp_path, tmp_path / "captions.jsonl", ROOT / "recipes" / "nano", tmp_path / "nano")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_recipes_remake_them(tmp_path):
    """About twenty minutes on 2 cores: the whole chain again, and components as good as the shipped ones."""
    subprocess.run(["bash", "launch/make_nano_assets.sh", str(tmp_path / "runs"), str(tmp_path / "nano")],
                   cwd=ROOT, check=True)
    pictures = [sample["pixels"] for sample in ShardDataset(tmp_path / "runs" / "pixels", "held_out")][:32]
    shipped, remade = (quality(folder, pictures) for folder in (NANO, tmp_path / "nano"))
    assert abs(remade["psnr"] - shipped["psnr"]) < 0.5
    assert abs(remade["codes_used"] - shipped["codes_used"]) <= 0.1 * shipped["codes_used"]
    assert remade["glyph_width"] == shipped["glyph_width"] and remade["glyph_spread"] > 0


def quality(folder, pictures) -> dict[str, float]:
    """VAE PSNR in dB, number of codes in use, and the glyph features' width and spread, of one model folder."""
    encoders = Encoders(folder, 128, 128)
    images = np.stack(pictures).astype(np.float32).transpose(0, 3, 1, 2) / 127.5 - 1
    rebuilt = encoders.vae.decode(encoders.vae.encode(Tensor(images))).asnumpy().clip(-1, 1)
    samples = encoders.encode(pictures, ['a sign that says "OPEN"'] * len(pictures))
    codes = np.concatenate([s[name].reshape(-1) for s in samples for name in ("preview_codes", "large_codes")])
    glyph = samples[0]["glyph"]
    return {"psnr": float(-10 * np.log10(((rebuilt - images) ** 2).mean((1, 2, 3)) / 4).mean()),
            "codes_used": len(np.unique(codes)), "glyph_width": glyph.shape[1], "glyph_spread": float(glyph.std())}
