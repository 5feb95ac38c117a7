"""Whole runs: the pipelines, and the gradients of both losses (see ar_families.py)."""

import mindspore as ms
import numpy as np

from mindglm.evaluate.precision.compare import CHOICE, EXACT, GRADIENT, HOST, Found
from mindglm.evaluate.precision.picture_families import unit_images
from mindglm.evaluate.precision.reference_families import ReadingNetwork, pipeline_sources
from mindglm.evaluate.precision.subject import AR, DIT, array
from mindglm.models.dit_decoder.conditions import upsample_codes
from mindglm.models.dit_decoder.model import DiTDecoder
from mindglm.models.dit_decoder.scheduler import model_time
from mindglm.objectives.ar_next_token import ArNextToken
from mindglm.objectives.flow_matching import Network as FlowNetwork
from mindglm.recipe.schema import ArNextTokenOptions

TRAIN_GRIDS = ((4, 3), (3, 2))
"""Large and preview grid of the training fixture."""


def pipeline(subject, fixture):
    """Seven runs: codes, glyphs, latents after every step, the picture; without and with source images."""
    own, args, noise = subject.pipeline, fixture["args"], fixture["noise"]
    size = args["height"], args["width"]
    prompt = fixture["t2i.prompt"]
    given = codes = _large_codes(fixture["t2i.prior_token_ids"], *size)
    if subject.dtype == "fp32":  # in half precision rounding decides other codes now and then
        codes = own.sample_codes([prompt], *size, [np.random.default_rng(0)])
        yield Found("t2i.prior_token_ids", upsample_codes(codes), CHOICE)
    glyphs = own.glyph_features([prompt])
    yield Found("t2i.prompt_embeds", glyphs[0][None])
    yield Found("t2i.negative_embeds", own.glyph_features([""])[0][None])
    yield from _picture(own, "t2i.", noise[:1], codes, glyphs, args)
    yield from pictures_of_given_codes(subject, fixture)
    prompts = fixture["t2i_batch.prompts"]
    codes = _large_codes(fixture["t2i_batch.prior_token_ids"], *size)
    if subject.dtype == "fp32":
        codes = own.sample_codes(prompts, *size, [np.random.default_rng(i) for i in range(2)])
        yield Found("t2i_batch.prior_token_ids", upsample_codes(codes), CHOICE)
    yield from _picture(own, "t2i_batch.", noise, codes, own.glyph_features(prompts), args)
    yield from pipeline_sources(subject, fixture, _picture, _large_codes)


def pictures_of_given_codes(subject, fixture):
    """The decoder half alone, with guidance and without."""
    own, args, noise = subject.pipeline, fixture["args"], fixture["noise"][:1]
    codes = _large_codes(fixture["t2i.prior_token_ids"], args["height"], args["width"])
    glyphs = own.glyph_features([fixture["t2i.prompt"]])
    yield from _picture(own, "t2i_given.", noise, codes, glyphs, args)
    yield from _picture(own, "t2i_nocfg.", noise, codes, glyphs, {**args, "guidance_scale": 1.0})


def _large_codes(prior_BN, height, width):
    """The DiT's codes (every code twice each way) back to the grid that the AR generator wrote."""
    return prior_BN.reshape(len(prior_BN), height // 16, width // 16)[:, ::2, ::2]


def _picture(own, prefix, noise, codes, glyphs, args, references=None):
    trace = []
    latents = own.sample_latents(noise, codes, glyphs, args["height"], args["width"], args["num_inference_steps"],
                                 args["guidance_scale"], on_step=lambda i, latents: trace.append(latents),
                                 references=references)
    for i, step in enumerate(trace):
        yield Found(f"{prefix}latents{i + 1}", step)
    yield Found(f"{prefix}image", unit_images(array(own.vae_decode(ms.Tensor(latents)))))


def train_ar(subject, fixture):
    """Next-code loss of one sample, and the gradient of every parameter."""
    large, preview = TRAIN_GRIDS
    labels = fixture["labels_shifted"]
    prompt = int((labels[0] < 0).sum()) + 1
    ids = fixture["input_ids"]
    cut = prompt + preview[0] * preview[1]
    sample = {"prompt_ids": ids[0, :prompt], "preview_codes": ids[0, prompt:cut].reshape(preview),
              "large_codes": ids[0, cut:].reshape(large)}
    objective = ArNextToken(subject.ar_config, ArNextTokenOptions(preview_weight=2.0), seed=0)
    own_ids, positions, own_labels, weights = objective.row(sample, sample["prompt_ids"])
    yield Found("input_ids", own_ids[None], EXACT)
    yield Found("position_ids", positions[:, None], EXACT)
    yield Found("labels_shifted", own_labels[None], EXACT)
    model, network = subject.fill(objective.model, AR), objective.network
    inputs = (subject.ids(ids), subject.ids(positions[:, None]), subject.ids(labels))
    yield Found("logits", array(model(*inputs[:2])))
    yield Found("token_nll", array(network.nll(*inputs))[0])
    loss, count = network(*inputs, subject.numbers(weights[None]))
    yield Found("preview_weight2_loss", array(loss).reshape(1) / array(count))
    equal = subject.numbers((labels >= 0).astype(np.float32))
    (loss, count), gradients = _gradients(subject, network, (*inputs, equal))
    yield Found("loss", array(loss).reshape(1) / array(count))
    yield from _named(gradients, "grad.", array(count))


def train_dit(subject, fixture):
    """Flow-matching loss of two samples and the gradient of every parameter; then of a pass that reads a reference."""
    model = subject.fill(DiTDecoder(subject.dit_config), DIT)
    for prefix in ("t2i.", "i2i."):
        latent, noise, t = (fixture[prefix + name] for name in ("latent", "noise", "t"))
        image_tokens = latent.shape[2] * latent.shape[3] // 4
        sigma = subject.scheduler.sigma(t, image_tokens)
        yield Found(prefix + "mu", subject.scheduler.mu(image_tokens), HOST)
        yield Found(prefix + "sigma", sigma, HOST)
        sigma = sigma[:, None, None, None]
        noisy = (1 - sigma) * latent + sigma * noise
        yield Found(prefix + "noisy", noisy, HOST)
        target = subject.numbers(noise - latent)
        x, glyph_BTD, *conditions = _train_conditions(subject, fixture, prefix, noisy, t)
        if prefix == "t2i.":
            mask = subject.bools(np.ones(glyph_BTD.shape[:2], bool))
            network, inputs = FlowNetwork(model), (x, target, glyph_BTD, mask, *conditions)
            velocity = model(x, glyph_BTD, *conditions)
        else:
            reference = (subject.floats(fixture["i2i.ref_latent"]), subject.ids(fixture["i2i.ref_ids"][None]),
                         subject.numbers([[8 * side for side in fixture["i2i.ref_latent"].shape[2:]]]))
            network, inputs = ReadingNetwork(model), (*reference, target, x, glyph_BTD, *conditions)
            velocity = model(x, glyph_BTD, *conditions, None, model.write(*reference)[1])
        yield Found(prefix + "pred", array(velocity))
        (loss, count), gradients = _gradients(subject, network, inputs)
        yield Found(prefix + "loss", array(loss).reshape(1) / array(count))
        yield from _named(gradients, prefix + "grad.", array(count))


def _train_conditions(subject, fixture, prefix, noisy, t):
    """Arguments of the DiT: noisy latents, glyphs, codes, which are withheld, time, size, crop."""
    batch, height, width = len(t), 8 * noisy.shape[2], 8 * noisy.shape[3]
    limit = subject.dit_config.prior_vq_quantizer_codebook_size
    return (subject.floats(noisy), subject.floats(fixture[prefix + "text"]),
            subject.ids(fixture[prefix + "prior_token_id"], limit), subject.bools(fixture[prefix + "prior_token_drop"]),
            subject.numbers(model_time(t)), subject.numbers([[height, width]] * batch),
            subject.numbers(np.zeros((batch, 2))))


def _gradients(subject, network, inputs):
    """((loss sum, weight sum), [(parameter, its gradient)]); no gradients where the device cannot take them."""
    if not subject.differentiates:
        return network(*inputs), []
    parameters = network.trainable_params()
    value, gradients = ms.value_and_grad(network, None, parameters, has_aux=True)(*inputs)
    return value, list(zip(parameters, gradients, strict=True))


def _named(gradients, prefix, count):
    """In the order of the backward pass: last parameter first."""
    for parameter, gradient in reversed(gradients):
        yield Found(prefix + parameter.name, array(gradient) / count, GRADIENT)
