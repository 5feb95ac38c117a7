"""Objective glyph_alignment: the targets, the loss by hand, and that training teaches characters and places."""

import types

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindglm.models.glyph_encoder import hf_names
from mindglm.objectives.glyph_alignment import ALPHABET, PICTURE_WEIGHT, GlyphAlignment, character_bitmap
from mindglm.recipe.models import GlyphConfig

CONFIG = GlyphConfig(d_model=32, d_kv=8, d_ff=48, num_heads=4, num_layers=2)
MAX_BYTES, SIDE = 6, 8


def make(seed=1):
    return GlyphAlignment(CONFIG, types.SimpleNamespace(max_bytes=MAX_BYTES, bitmap_size=SIDE), seed)


def draw(i, purpose, step=0):
    return np.random.default_rng([step, i, *purpose.encode()])


@pytest.fixture(scope="module")
def objective():
    return make()


def test_targets_of_each_byte(objective):
    ids, mask, pictures, left, right = objective.collate([{}] * 60, draw, training=True)
    assert ids.shape == (60, MAX_BYTES + 2) and ids.dtype == np.int32 and mask.dtype == bool
    lengths, fronts = set(), set()
    for row in range(60):
        valid = np.flatnonzero(left[row] >= 0)
        word = [chr(i - 3) for i in ids[row, valid[:-1]]]
        assert set(word) <= set(ALPHABET) and ids[row, valid[-1]] == 1
        assert left[row, valid].tolist() == list(range(len(word) + 1))
        assert right[row, valid].tolist() == list(range(len(word), -1, -1))
        for place, character in zip(valid, word):
            np.testing.assert_array_equal(pictures[row, place], character_bitmap(character, SIDE).ravel())
        assert not pictures[row, valid[-1]].any()
        assert mask[row].sum() == valid[-1] + 1 and mask[row, : valid[-1] + 1].all()
        lengths.add(len(word))
        fronts.add(int(valid[0]))
    assert lengths == set(range(1, MAX_BYTES + 1)) and fronts == {0, 1}


def test_bitmaps_tell_characters_apart():
    flat = np.stack([character_bitmap(c, 12).ravel() for c in ALPHABET])
    distance = ((flat[:, None] - flat[None]) ** 2).sum(-1) + 100 * np.eye(len(ALPHABET))
    assert flat.min() >= 0 and flat.max() <= 1 and (flat.sum(1) > 3).all()
    alike = {ALPHABET[i] + ALPHABET[j] for i, j in np.argwhere(distance < 0.5) if i < j}
    assert alike <= {"Il"}


def test_loss_by_hand(objective):
    ids, mask, pictures, left, right = batch = objective.collate([{}] * 5, draw, training=True)
    loss, weight = (t.asnumpy() for t in objective.network(*map(Tensor, batch)))
    ours = [t.asnumpy().astype(np.float64) for t in objective.network.predict(Tensor(ids), Tensor(mask))]
    expected = 0.0
    for row, place in np.argwhere(left >= 0):
        expected += PICTURE_WEIGHT * np.mean((ours[0][row, place] - pictures[row, place]) ** 2)
        for logits, label in ((ours[1], left), (ours[2], right)):
            scores = logits[row, place]
            expected += np.log(np.exp(scores).sum()) - scores[label[row, place]]
    assert weight == (left >= 0).sum()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_exported_names_are_the_released_ones(objective):
    assert {n: p.shape for n, p in objective.component_tensors().items()} == hf_names.tensors(CONFIG)
    trained = {p.name for p in objective.network.trainable_params()}
    assert trained == set(hf_names.tensors(CONFIG)) | {"alignment_weight", "alignment_bias"}


def test_training_in_one_graph_teaches_places():
    """Forty compiled steps on words of up to three letters; chance is one place in four."""
    config = GlyphConfig(d_model=32, d_kv=8, d_ff=32, num_heads=2, num_layers=1)
    objective = GlyphAlignment(config, types.SimpleNamespace(max_bytes=3, bitmap_size=6), seed=2)
    weights = objective.network.trainable_params()
    step = ms.jit(ms.value_and_grad(objective.network, None, weights, has_aux=True))
    momenta = [np.zeros(w.shape, np.float32) for w in weights]
    losses = []
    for k in range(40):
        batch = objective.collate([{}] * 64, lambda i, purpose, k=k: draw(i, purpose, k), training=True)
        (loss, weight), gradients = step(*map(Tensor, batch))
        count = float(weight.asnumpy())
        losses.append(float(loss.asnumpy()) / count)
        for i, (w, g) in enumerate(zip(weights, gradients)):
            momenta[i] = 0.9 * momenta[i] + g.asnumpy() / count
            w.copy_(Tensor(w.asnumpy() - 0.1 * momenta[i] / max(1.0, np.abs(momenta[i]).max())))
    ids, mask, _, left, right = objective.collate([{}] * 64, draw, training=False)
    _, found_left, found_right = objective.read_back(ids, mask)
    valid = left >= 0
    assert losses[-1] < 2.5 < losses[0]  # places known to nobody cost 2 ln 4 = 2.8 alone
    assert (found_right == right)[valid].mean() > 0.6
    assert (found_left == left)[valid].mean() > 0.35
