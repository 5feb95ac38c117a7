"""Objective glyph_alignment: the prescribed features, the loss by hand, and what training teaches."""

import types

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindglm.models.glyph_encoder import hf_names
from mindglm.objectives.glyph_alignment import ALPHABET, END, GlyphAlignment, character_bitmap, code_tables
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
    ids, mask, features, counted = objective.collate([{}] * 60, draw, training=True)
    assert ids.shape == counted.shape == (60, MAX_BYTES + 2) and ids.dtype == np.int32 and mask.dtype == bool
    assert features.shape == (*ids.shape, CONFIG.d_model) and features.dtype == np.float32
    characters, left, right = objective.codes
    lengths, fronts = set(), set()
    for row in range(60):
        valid = np.flatnonzero(counted[row])
        word = [chr(i - 3) for i in ids[row, valid[:-1]]]
        assert set(word) <= set(ALPHABET) and ids[row, valid[-1]] == 1
        for k, place in enumerate(valid):
            character = END if k == len(word) else ALPHABET.index(word[k])
            expected = [*characters[character], *left[k], *right[len(word) - k]]
            np.testing.assert_array_equal(features[row, place], expected)
        assert not features[row, ~counted[row]].any()
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


def test_codes_are_equally_loud_and_tell_apart():
    tables = code_tables(64, 13, SIDE)
    assert [t.shape for t in tables] == [(END + 1, 40), (13, 12), (13, 12)]
    for table in tables:
        np.testing.assert_allclose(np.mean(table**2, axis=1), 1, rtol=1e-5)
        cosines = table @ table.T / table.shape[1] - 2 * np.eye(len(table))
        assert cosines.max() < 0.95


def test_like_pictures_have_like_codes():
    pictures = np.stack([character_bitmap(c, SIDE).ravel() for c in ALPHABET])
    looks = np.corrcoef(pictures)
    characters = code_tables(64, 13, SIDE)[0][:END]
    pairs = np.triu_indices(END, 1)
    assert np.corrcoef(looks[pairs], (characters @ characters.T)[pairs])[0, 1] > 0.3


def test_loss_by_hand(objective):
    ids, mask, features, counted = batch = objective.collate([{}] * 5, draw, training=True)
    loss, weight = (t.asnumpy() for t in objective.network(*map(Tensor, batch)))
    ours = objective.model(Tensor(ids), Tensor(mask)).asnumpy().astype(np.float64)
    expected = sum(np.mean((ours[row, k] - features[row, k]) ** 2) for row, k in np.argwhere(counted))
    assert weight == counted.sum()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_exported_names_are_the_released_ones(objective):
    assert {n: p.shape for n, p in objective.component_tensors().items()} == hf_names.tensors(CONFIG)
    assert {p.name for p in objective.network.trainable_params()} == set(hf_names.tensors(CONFIG))


def test_training_in_one_graph_teaches_characters_and_places():
    """Compiled steps on words of up to three letters; chance is one character in 63 and one place in four."""
    config = GlyphConfig(d_model=32, d_kv=8, d_ff=32, num_heads=2, num_layers=1)
    objective = GlyphAlignment(config, types.SimpleNamespace(max_bytes=3, bitmap_size=6), seed=2)
    weights = objective.network.trainable_params()
    step = ms.jit(ms.value_and_grad(objective.network, None, weights, has_aux=True))
    first = [np.zeros(w.shape, np.float32) for w in weights]
    second = [np.zeros(w.shape, np.float32) for w in weights]
    losses = []
    for k in range(1, 121):
        batch = objective.collate([{}] * 64, lambda i, purpose, k=k: draw(i, purpose, k), training=True)
        (loss, weight), gradients = step(*map(Tensor, batch))
        count = float(weight.asnumpy())
        losses.append(float(loss.asnumpy()) / count)
        for i, (w, g) in enumerate(zip(weights, gradients)):
            g = g.asnumpy() / count
            first[i], second[i] = 0.9 * first[i] + 0.1 * g, 0.98 * second[i] + 0.02 * g * g
            update = first[i] / (1 - 0.9**k) / (np.sqrt(second[i] / (1 - 0.98**k)) + 1e-8)
            w.copy_(Tensor(w.asnumpy() - 0.01 * update))
    ids, mask, features, counted = objective.collate([{}] * 64, draw, training=False)
    found = objective.read_back(ids, mask)
    edges = np.cumsum([table.shape[1] for table in objective.codes])[:-1]
    asked = [(part @ table.T).argmax(-1) for part, table in zip(np.split(features, edges, -1), objective.codes)]
    shares = [(f == a)[counted].mean() for f, a in zip(found, asked)]
    assert losses[-1] < 0.25 * losses[0]
    assert shares[0] > 0.9 and shares[2] > 0.6  # places from the left need more layers than one
