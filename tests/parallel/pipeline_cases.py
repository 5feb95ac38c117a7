"""Micro-batches and models for the pipeline tests, and the same step without a pipeline."""

import dataclasses
from dataclasses import dataclass, field

import mindspore as ms
import numpy as np
from mindspore import Tensor

from mindglm.checkpoint.released import component_config
from mindglm.models.ar_generator import config as ar_config
from mindglm.models.ar_generator import stages as ar_stages
from mindglm.models.ar_generator.model import ArGenerator
from mindglm.models.dit_decoder import config as dit_config
from mindglm.models.dit_decoder import stages as dit_stages
from mindglm.models.dit_decoder.model import DiTDecoder
from mindglm.models.dit_decoder.references import join_images, stack_samples
from mindglm.objectives.ar_next_token import ArNextToken, weighted_sums
from mindglm.objectives.flow_matching import FlowMatching, error_sums
from mindglm.ops.parameters import normal
from mindglm.parallel import transport
from mindglm.parallel.pipeline import Executor
from mindglm.plan import cuts, schedules
from tests.golden import REPO

LENGTHS = (12, 20, 7, 12, 16)
"""Of the AR micro-batches' sequences."""


@dataclass(frozen=True)
class Case:
    """One model under one schedule."""

    model: str
    """ar | dit | dit_i2i."""
    kind: str
    micro_batches: int
    chunks: int = 1
    recompute: frozenset[int] = field(default_factory=frozenset)
    layers: int = 2

    @property
    def name(self) -> str:
        again = "_recompute" if self.recompute else ""
        return f"{self.model}_{self.kind}_{self.micro_batches}x{self.chunks}_{self.layers}{again}"


def config_of(case: Case):
    if case.model == "ar":
        config = ar_config.from_hf(component_config(REPO, "vision_language_encoder"))
        return dataclasses.replace(config, text_config=dataclasses.replace(
            config.text_config, num_hidden_layers=case.layers))
    config = dit_config.from_hf(component_config(REPO, "transformer"))
    return dataclasses.replace(config, num_layers=case.layers)


def set_weights(cell):
    """Small values everywhere (a fresh DiT's gates are zero), a function of each name; returns the cell."""
    for parameter in cell.get_parameters():
        offset = 1 if "norm" in parameter.name.split(".")[-2] else 0
        values = 0.1 * normal(3, parameter.name, parameter.shape) + offset
        parameter.set_data(Tensor(values.astype(np.float32)))
    return cell


def batches(case: Case) -> list[tuple]:
    config = config_of(case)
    make = {"ar": ar_batch, "dit": dit_batch, "dit_i2i": i2i_batch}[case.model]
    return [make(config, i) for i in range(case.micro_batches)]


def ar_batch(config, i: int) -> tuple:
    rng, b, s = np.random.default_rng(i), 1 + i % 2, LENGTHS[i % len(LENGTHS)]
    ids = rng.integers(0, config.text_config.vocab_size, (b, s)).astype(np.int32)
    positions = np.sort(rng.integers(0, s, (3, b, s)), -1).astype(np.int32)
    labels = rng.integers(-1, config.num_codes, (b, s)).astype(np.int32)
    return ids, positions, labels, rng.random((b, s), dtype=np.float32)


def dit_batch(config, i: int) -> tuple:
    rng, b, h, w, t = np.random.default_rng(i), 1 + i % 2, 4, (4, 8, 4)[i % 3], (3, 5)[i % 2]
    n = h * w // config.patch_size**2
    mask = np.ones((b, t), bool)
    mask[0, :1] = False
    latents = rng.standard_normal((2, b, config.in_channels, h, w), dtype=np.float32)
    return (latents[0], latents[1], rng.standard_normal((b, t, config.text_embed_dim), dtype=np.float32), mask,
            rng.integers(0, config.prior_vq_quantizer_codebook_size, (b, n)).astype(np.int32), rng.random((b, n)) < 0.2,
            rng.integers(0, 999, b).astype(np.float32), np.full((b, 2), 32, np.float32), np.zeros((b, 2), np.float32))


def i2i_batch(config, i: int) -> tuple:
    """(stage inputs, target): two samples with two and one references, one micro-batch without glyphs."""
    noisy, target, glyph, _, ids, *rest = dit_batch(config, 1 + 2 * i)
    references = []
    for sample, h, w in ((0, 4, 4), (0, 2, 4), (1, 4, 2)):
        rng = np.random.default_rng([i, sample, w])
        n = h * w // config.patch_size**2
        references.append(dit_stages.Reference(
            sample, rng.standard_normal((1, config.in_channels, h, w), dtype=np.float32),
            rng.integers(0, config.prior_vq_quantizer_codebook_size, (1, n)).astype(np.int32),
            np.array([[8 * h, 8 * w]], np.float32)))
    glyph = glyph[:, :0] if i == 1 else glyph
    return dit_stages.Inputs(noisy, glyph, ids, *rest, None, tuple(references)), target


def executor(case: Case, ranks: int) -> Executor:
    """Of this process, which is one of `ranks`."""
    config, module = config_of(case), ar_stages if case.model == "ar" else dit_stages
    units = len(module.unit_names(config))
    ranges = cuts.balanced([1] * units, ranks * case.chunks)[transport.rank()::ranks]
    stages = [set_weights(module.Stage(config, start, stop, case.recompute)) for start, stop in ranges]
    inputs, loss = {"ar": (ArNextToken.stage_inputs, ArNextToken.stage_loss),
                    "dit": (FlowMatching.stage_inputs, FlowMatching.stage_loss),
                    "dit_i2i": (lambda batch: batch[0], lambda v, batch: error_sums(v, Tensor(batch[1])))}[case.model]
    return Executor(stages, schedules.build(case.kind, ranks, case.micro_batches, case.chunks), range(ranks), inputs,
                    loss)


def undivided(case: Case) -> tuple[float, float, dict[str, np.ndarray]]:
    """(loss_sum, weight_sum, gradients by name) of the whole model by ms.value_and_grad."""
    config = config_of(case)
    model = set_weights(ArGenerator(config) if case.model == "ar" else DiTDecoder(config))
    parameters = list(model.trainable_params())
    step = ms.value_and_grad(lambda batch: whole_loss(case, model, batch), None, parameters, has_aux=True)
    loss_sum = weight_sum = 0.0
    total = {parameter.name: 0 for parameter in parameters}
    for batch in batches(case):
        (loss, weight), gradients = step(batch)
        loss_sum, weight_sum = loss_sum + float(loss), weight_sum + float(weight)
        total = {p.name: total[p.name] + g.asnumpy().copy() for p, g in zip(parameters, gradients)}
    return loss_sum, weight_sum, total


def whole_loss(case: Case, model, batch):
    if case.model == "ar":
        ids, positions, labels, weights = (Tensor(array) for array in batch)
        return weighted_sums(model(ids, positions), labels, weights)
    if case.model == "dit":
        noisy, target, glyph, mask, *rest = (Tensor(array) for array in batch)
        return error_sums(model(noisy, glyph, *rest, mask), target)
    inputs, target = batch
    caches = {}
    for sample, *arrays in inputs.references:
        caches.setdefault(sample, []).append(model.write(*(Tensor(array) for array in arrays))[1])
    cache, mask = stack_samples([join_images(images) for images in caches.values()])
    arguments = [Tensor(array) for array in inputs[:7]]
    return error_sums(model(*arguments, None, cache, None if mask is None else Tensor(mask)), Tensor(target))


def check(case: Case, loss_sum: float, weight_sum: float, gradients: dict[str, np.ndarray]) -> float:
    """AssertionError unless a pipeline's step is the undivided one to 1e-6; the largest relative difference."""
    loss, weight, expected = undivided(case)
    np.testing.assert_allclose((loss_sum, weight_sum), (loss, weight), rtol=1e-6, err_msg=case.name)
    assert set(gradients) == set(expected), set(gradients) ^ set(expected)
    worst = max((np.abs(gradients[name] - value).max() / np.abs(value).max(), name)
                for name, value in expected.items() if np.abs(value).max() > 0)
    assert worst[0] < 1e-6, (case.name, worst)
    assert all(not gradients[name].any() for name, value in expected.items() if not value.any())
    return worst[0]
