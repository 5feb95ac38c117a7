"""The arithmetic of the held-out figures, on data where the answer is known."""

import math

import numpy as np
import pytest
from mindspore import Tensor

from mindglm.evaluate import held_out
from mindglm.models.dit_decoder.scheduler import Scheduler


def test_mean_and_error_and_pairing():
    losses = {"right": np.array([1.0, 2.0, 3.0]), "other": np.array([2.0, 4.0, 3.0])}
    table = held_out.paired(losses)
    assert table["right"] == {"mean": 2.0, "standard_error": pytest.approx(1 / math.sqrt(3)), "count": 3}
    assert table["other"]["minus_right"]["mean"] == pytest.approx(1.0)
    assert table["other"]["minus_right"]["standard_error"] == pytest.approx(1 / math.sqrt(3))
    assert table["other"]["ratio"] == pytest.approx(1.5)
    assert table["other"]["right_wins"] == pytest.approx(2 / 3)
    assert held_out.mean_and_error([4.0])["standard_error"] is None


def test_another_never_is_the_same():
    words = ["open", "shut", "open", "open"]
    partners = held_out.another(words)
    assert all(words[i] != words[j] for i, j in enumerate(partners))
    with pytest.raises(AssertionError, match="the same"):
        held_out.another(["a", "a"])


def test_unigram_figures():
    figures = held_out.unigram(np.array([[0, 0], [1, 1]]), np.array([0, 2]), 4)
    assert figures["entropy"] == pytest.approx(math.log(2))
    assert figures["cross_entropy"] == pytest.approx(-(math.log(3 / 8) + math.log(1 / 8)) / 2)
    assert figures["used"] == 2


def test_psnr():
    black, grey = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 51, np.uint8)
    assert held_out.psnr(black, grey) == pytest.approx(20 * math.log10(5))
    assert held_out.psnr(black, black) == 99.0
    figures = held_out.vae_figures(np.stack([grey, grey]), np.stack([black, black]))
    assert figures["psnr_db"]["mean"] == pytest.approx(20 * math.log10(5))
    assert figures["mean_colour_psnr_db"]["mean"] == 99.0


def test_batches_have_one_size_and_cover_everything_once():
    seen = []
    for rows, fresh in held_out.batches(7, 3):
        assert len(rows) == 3
        seen.extend(rows[:fresh])
    assert seen == list(range(7))


def _sample(rng, caption, prompt_length):
    return {"caption": caption, "prompt_ids": rng.integers(10, 20, prompt_length).astype(np.int32),
            "preview_codes": rng.integers(0, 8, (2, 2)), "large_codes": rng.integers(0, 8, (1, 2)),
            "latents": rng.normal(size=(2, 4, 4)).astype(np.float32), "target_size": np.array([32, 32]),
            "crop": np.array([0, 0]), "glyph": rng.normal(size=(prompt_length, 3)).astype(np.float32)}


def test_ar_nll_reads_the_logits_of_the_token_before_each_code():
    rng = np.random.default_rng(0)
    samples = [_sample(rng, str(i), 3 + i) for i in range(3)]

    def oracle(ids, positions):
        """Knows the next token: 2 nats of lead over 15 other ids. Positions must be those of training."""
        ids = ids.asnumpy()
        assert (positions.asnumpy()[:, 0, :3] == np.arange(3)).all()
        logits = np.zeros((*ids.shape, 16), np.float32)
        following = np.roll(ids, -1, 1)
        for b, s in np.argwhere(following < 16):
            logits[b, s, following[b, s]] = 2.0
        return Tensor(logits)

    preview, large = held_out.ar_nll(oracle, samples, [s["prompt_ids"] for s in samples], batch_size=2)
    expected = math.log(math.exp(2) + 15) - 2
    assert preview.shape == (3, 4) and large.shape == (3, 2)
    np.testing.assert_allclose(np.concatenate([preview, large], 1), expected, rtol=1e-6)


def test_ar_figures_weigh_every_code_alike():
    own = (np.full((2, 4), 1.0), np.full((2, 2), 4.0))
    other = (np.full((2, 4), 2.0), np.full((2, 2), 5.0))
    codes = (np.zeros((2, 2, 2), int), np.zeros((2, 1, 2), int))
    table = held_out.ar_figures(own, other, codes, codes, 8)
    assert table["preview"]["captions"]["right"]["mean"] == 1.0
    assert table["together"]["captions"]["right"]["mean"] == pytest.approx((4 * 1.0 + 2 * 4.0) / 6)
    assert table["together"]["captions"]["other"]["minus_right"]["mean"] == pytest.approx(1.0)
    assert table["large"]["codes_per_image"] == 2


def test_flow_losses_are_paired_and_reach_the_right_samples():
    rng = np.random.default_rng(1)
    samples = [_sample(rng, str(i), 2 + i) for i in range(3)]
    calls = []

    def dit(latents, glyph, prior, drop, time, size, crop, mask, references=None, reference_mask=None):
        assert references is None and reference_mask is None
        calls.append((prior.asnumpy(), drop.asnumpy(), time.asnumpy(), glyph.shape, mask.asnumpy(), latents.asnumpy()))
        return Tensor(latents.asnumpy() * 0 + (5.0 if drop.asnumpy().any() else 0.0))

    codes, glyphs = [s["large_codes"] for s in samples], [s["glyph"] for s in samples]
    variants = {"right": held_out.Variant(codes, glyphs), "none": held_out.Variant(codes, glyphs, drop=True)}
    losses = held_out.flow_losses(dit, Scheduler(), samples, variants, seed=3, timesteps=(1, 999), batch_size=4)
    assert losses["right"].shape == (3, 2)
    # A velocity of zero leaves mean (noise - clean)^2; one of 5 adds 25 - 10 * mean(noise - clean).
    noise = held_out.rng(3, 999, 2, "evaluate/noise").standard_normal((2, 4, 4), dtype=np.float32)
    target = noise - samples[2]["latents"]
    assert losses["right"][2, 1] == pytest.approx((target**2).mean(), rel=1e-5)
    assert losses["none"][2, 1] == pytest.approx(((5 - target) ** 2).mean(), rel=1e-5)
    prior, drop, time, glyph_shape, mask, noisy = calls[0]
    mu = 0.75 * math.sqrt(4 / 256) + 0.25  # 4 image tokens
    sigma = mu / (mu + 1000 / 999 - 1)
    first = held_out.rng(3, 999, 0, "evaluate/noise").standard_normal((2, 4, 4), dtype=np.float32)
    np.testing.assert_allclose(noisy[1], (1 - sigma) * samples[0]["latents"] + sigma * first, atol=1e-5)
    np.testing.assert_array_equal(prior[0], samples[0]["large_codes"].repeat(2, 0).repeat(2, 1).reshape(-1))
    assert time.tolist() == [0, 998, 0, 998] and not drop.any()
    assert glyph_shape == (4, 8, 3) and mask.sum(1).tolist() == [2, 2, 3, 3]
    figures = held_out.flow_figures(losses, (1, 999))
    assert figures["variants"]["right"]["mean"] == pytest.approx(losses["right"].mean())
    assert figures["by_timestep"]["none"][1] == pytest.approx(losses["none"][:, 1].mean())
