"""Tokenizer training: straight-through gradients, codebook updates, re-seeding, and that it learns."""

from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from mindglm.checkpoint.released import component_config
from mindglm.errors import UserError
from mindglm.models.ar_generator import hf_names
from mindglm.models.ar_generator.config import from_hf
from mindglm.objectives.vq_reconstruction import VqReconstruction, cluster_centres, usage
from tests.golden import REPO, load, rel_error

CONFIG = from_hf(component_config(REPO, hf_names.COMPONENT))
CODEBOOK = "model.vqmodel.quantize.embedding.weight"


def build(**changes):
    options = {"commitment_beta": 0.25, "codebook_weight": 1.0, "reseed_interval": 10, "reseed_until": 0, **changes}
    return VqReconstruction(CONFIG, SimpleNamespace(**options), seed=0)


def pictures(count, size=64):
    """Soft coloured blobs: (H, W, 3) uint8."""
    rng, out = np.random.default_rng(5), []
    y, x = np.mgrid[:size, :size] / size
    for _ in range(count):
        ground, ink, (cy, cx) = rng.uniform(0, 255, 3), rng.uniform(0, 255, 3), rng.uniform(0.2, 0.8, 2)
        inside = 1 / (1 + np.exp(30 * (np.hypot(y - cy, x - cx) - 0.25)))
        out.append((ground + inside[..., None] * (ink - ground)).astype(np.uint8))
    return out


def batch_of(objective, count=2, size=64):
    return objective.collate([{"pixels": picture} for picture in pictures(count, size)], None, True)


def gradients(objective, batch, pick):
    """{name: gradient} of pick(network, *tensors)."""
    parameters = list(objective.network.trainable_params())
    step = ms.value_and_grad(lambda *tensors: pick(objective.network, *tensors), None, parameters)
    _, found = step(*[Tensor(array) for array in batch])
    return {parameter.name: gradient.asnumpy() for parameter, gradient in zip(parameters, found, strict=True)}


def test_collate_makes_both_views():
    objective = build()
    large, preview = batch_of(objective, 2)
    assert large.shape == (2, 2, 2, 768) and preview.shape == (2, 16, 16, 768)
    assert large.dtype == preview.dtype == np.float32 and np.abs(preview).max() <= 1
    wide, low = objective.collate([{"pixels": np.zeros((64, 96, 3), np.uint8)}], None, False)
    assert wide.shape == (1, 2, 3, 768) and low.shape == (1, 13, 19, 768)
    with pytest.raises(UserError, match="several sizes"):
        objective.collate([{"pixels": np.zeros(shape, np.uint8)} for shape in ((64, 96, 3), (64, 64, 3))], None, True)


def test_pixel_gradient_passes_straight_through():
    """The pixel error's gradient at z equals the one at the code's vector, and none reaches the codebook."""
    objective = build(commitment_beta=0.0, codebook_weight=0.0)
    load(objective.model, hf_names.COMPONENT)
    batch, vq = batch_of(objective), objective.model.model.vqmodel
    patches = Tensor(batch[0])
    found = gradients(objective, batch[:1], lambda network, large: network.view_loss(large).sum())
    assert not found[CODEBOOK].any()
    assert all(gradient.any() for name, gradient in found.items() if name != CODEBOOK)

    # The same gradient with the code's vector as the point of evaluation: d loss / d e, pushed back through z alone.
    z = objective.model.unit_vectors(patches)
    e = vq.quantize.unit_codebook()[vq.codes(z)]

    def pixel_loss(vector):
        rebuilt = objective.training_only.pixel_head(vq.post_quant_conv(vector))
        return ((rebuilt - patches.reshape(rebuilt.shape)) ** 2).mean((1, 2)).sum()

    pull = ms.grad(pixel_loss)(e)
    weight = vq.quant_conv.weight
    expected = ms.grad(lambda: (objective.model.unit_vectors(patches) * pull).sum(), None, [weight])()
    expected = expected[0] if isinstance(expected, tuple) else expected
    assert rel_error(found[weight.name], expected) <= 1e-5


def test_forward_uses_the_code_not_the_encoder():
    objective = build()
    load(objective.model, hf_names.COMPONENT)
    patches, vq = Tensor(batch_of(objective)[0]), objective.model.model.vqmodel
    rebuilt, to_e, to_z = objective.network.rebuild(patches)
    z = objective.model.unit_vectors(patches)
    e = vq.quantize.unit_codebook()[vq.codes(z)]
    assert rel_error(rebuilt, objective.training_only.pixel_head(vq.post_quant_conv(e))) <= 1e-5
    assert rel_error(to_e, ((z - e) ** 2).sum(-1)) <= 1e-5 and rel_error(to_z, to_e) <= 1e-6


def test_codebook_and_commitment_terms_pull_one_side_each():
    objective = build()
    load(objective.model, hf_names.COMPONENT)
    batch = batch_of(objective)[:1]
    to_encoder = gradients(objective, batch, lambda network, large: network.rebuild(large)[1].sum())
    assert not to_encoder[CODEBOOK].any() and to_encoder["model.vqmodel.quant_conv.weight"].any()
    to_codebook = gradients(objective, batch, lambda network, large: network.rebuild(large)[2].sum())
    moved = [name for name, gradient in to_codebook.items() if gradient.any()]
    assert moved == [CODEBOOK]
    # Only codes in use move, and a step against the gradient brings them nearer.
    z = objective.encoder_outputs([batch])
    table = objective.model.model.vqmodel.quantize.embedding.weight
    used, before = usage(z, table.asnumpy())
    assert np.array_equal(to_codebook[CODEBOOK].any(1), used)
    _, after = usage(z, table.asnumpy() - 0.1 * to_codebook[CODEBOOK])
    assert after.mean() < before.mean()


def test_loss_is_a_sum_over_images():
    objective = build()
    load(objective.model, hf_names.COMPONENT)
    batch = batch_of(objective, 3)
    total, weight = objective.network(*[Tensor(array) for array in batch])
    parts = [objective.network(*[Tensor(array[i : i + 1]) for array in batch])[0] for i in range(3)]
    assert float(weight) == 3 and abs(float(total) / sum(float(part) for part in parts) - 1) <= 1e-5


def test_after_step_initialises_then_reseeds_dead_codes():
    objective = build()
    batch = batch_of(objective, 2)
    table = objective.model.model.vqmodel.quantize.embedding.weight
    first = objective.after_step(1, [batch])
    assert first["codes_reseeded"] == CONFIG.num_codes
    centres = table.asnumpy().copy()
    assert np.allclose(np.linalg.norm(centres, axis=1), 1, atol=1e-5)
    used, distance = usage(objective.encoder_outputs([batch]), centres)
    assert used.mean() > 0.9 and distance.mean() < 0.01
    assert objective.after_step(2, [batch]) == {}

    broken = centres.copy()
    broken[5:20] = broken[4]  # the first of equal codes is taken, the others are dead
    table.set_data(Tensor(broken))
    used, _ = usage(objective.encoder_outputs([batch]), broken)
    info = objective.after_step(10, [batch])
    assert info == {"codes_used": int(used.sum()), "codes_reseeded": int((~used).sum())} and (~used).sum() >= 15
    mended = table.asnumpy().copy()
    assert np.array_equal(mended[used], broken[used]), "codes in use keep their place"
    assert usage(objective.encoder_outputs([batch]), mended)[0].sum() > used.sum()

    table.set_data(Tensor(broken))
    objective.after_step(10, [tuple(Tensor(array) for array in batch)])
    assert np.array_equal(table.asnumpy(), mended), "a pure function of weights, step and batch"
    table.set_data(Tensor(broken))
    objective.after_step(20, [batch])
    assert not np.array_equal(table.asnumpy(), mended)


def test_reseeding_ends_and_can_be_off():
    objective = build(reseed_interval=10, reseed_until=20)
    batch = batch_of(objective, 1)
    assert objective.after_step(20, [batch]) and objective.after_step(30, [batch]) == {}
    assert build(reseed_interval=0).after_step(10, [batch]) == {}


def test_all_ranks_set_the_same_codes():
    """Two ranks, or two micro-batches, set what one process with the whole batch sets: in order of samples."""
    batch = batch_of(build(), 2)
    parts = [tuple(array[i : i + 1] for array in batch) for i in range(2)]
    tables = []
    for given in ([batch], parts):
        objective = build()
        objective.after_step(1, given)
        tables.append(objective.model.model.vqmodel.quantize.embedding.weight.asnumpy().copy())
    others = [[build().encoder_outputs([part])[rows] for part in parts] for rows in split_views(build(), parts[0])]
    for part in parts:
        objective, joined = build(), iter([np.concatenate(views) for views in others])
        objective.after_step(1, [part], gather=lambda mine: next(joined))
        tables.append(objective.model.model.vqmodel.quantize.embedding.weight.asnumpy().copy())
    for table in tables[1:]:
        np.testing.assert_allclose(table, tables[0], atol=1e-5)


def split_views(objective, part) -> list[slice]:
    """Where the vectors of each view lie in encoder_outputs of one sample."""
    first = objective.encoder_outputs([part[:1]]).shape[0]
    return [slice(first), slice(first, None)]


def test_cluster_centres_with_few_vectors():
    z = np.eye(3, 8, dtype=np.float32)
    centres = cluster_centres(z, 10, np.random.default_rng(0))
    assert centres.shape == (10, 8) and np.isfinite(centres).all()
    assert usage(z, centres)[1].max() < 1e-3


def test_pixel_head_is_not_exported():
    objective = build()
    exported = {name: tensor.shape for name, tensor in objective.component_tensors().items()}
    assert exported == hf_names.tokenizer_tensors(CONFIG)
    extra = {parameter.name for parameter in objective.network.get_parameters()} - set(exported)
    assert extra == {"pixel_head.weight", "pixel_head.bias"}


def test_learns_a_few_images():
    """Compiled training on two pictures (a quarter of each): the error falls far below that of one best colour."""
    objective = build()
    large, preview = batch_of(objective, 2)
    batch = (large, preview[:, 4:12, 4:12])
    tensors = [Tensor(array) for array in batch]
    parameters = list(objective.network.trainable_params())
    optimizer = nn.Adam(parameters, 5e-3)

    def forward(large, preview):
        total, weight = objective.network(large, preview)
        return total / weight

    step = ms.jit(ms.value_and_grad(forward, None, parameters))
    losses = []
    for n in range(1, 41):
        loss, found = step(*tensors)
        optimizer(found)
        objective.after_step(n, [batch])
        losses.append(float(loss))
    variance = np.mean([array.var() for array in batch])
    rebuilt = objective.network.rebuild(tensors[1])[0].asnumpy()
    error = ((rebuilt - batch[1].reshape(rebuilt.shape)) ** 2).mean()
    assert losses[-1] < 0.1 * losses[0] and error < 0.1 * variance
