"""What the decoder's side computes: glyph features, the DiT, the noise schedule, the VAE (see ar_families.py).

Shapes: B batch, T glyph tokens, N image tokens, C channels, h w latent sides.
"""

import math

import numpy as np
from PIL import Image

from mindglm.evaluate.precision.compare import EXACT, HOST, Found
from mindglm.evaluate.precision.subject import array, watched
from mindglm.models.dit_decoder.model import frequencies, rotary_tables, sinusoids
from mindglm.models.dit_decoder.scheduler import Scheduler
from mindglm.models.glyph_encoder import text
from mindglm.models.vae.pixels import pixels_of, preprocess

DIT_INPUTS = ("hidden_states", "encoder_hidden_states", "prior_token_id", "timestep", "target_size", "crop_coords")

SINCOS_TOLERANCE = 6e-5
"""Times reach 999 and sizes 2048: a frequency that two libraries' exp rounds to neighbouring float32 numbers (seen
once in 32 frequencies) turns an angle by up to 6e-5 and 1.2e-4. `temb`, made of these waves, is judged as usual."""


def glyph(subject, fixture):
    """The encoder on long strings with a mask, then quoted strings of prompts, alone and in a batch."""
    encoder = subject.glyph_encoder
    prompts = fixture["prompts"]
    yield Found("glyph_texts", [text.glyph_strings(prompt) for prompt in prompts], EXACT)
    ids, mask = fixture["enc.input_ids"], fixture["enc.attention_mask"] == 1
    bias = array(encoder.encoder.position_bias(ids.shape[1]))
    yield Found("enc.position_bias", bias[:, :, ::37])
    with watched({f"block{i}": block for i, block in enumerate(encoder.encoder.block)}) as seen:
        last = encoder(subject.ids(ids, encoder.config.vocab_size), subject.bools(mask))
    for i in range(len(encoder.encoder.block)):
        yield Found(f"enc.block{i}", array(seen[f"block{i}"][0]))
    yield Found("enc.last_hidden_state", array(last))
    features = text.embed_prompts(encoder, prompts)
    for i, rows in enumerate(features):
        yield Found(f"embeds{i}", rows[None])
    yield Found("embeds_batch", text.pad_left_batch(features))
    yield Found("embeds_trunc8", text.embed_prompts(encoder, ["'a very long glyph text'"], 8)[0][None])


def dit_inputs(subject, fixture, prefix, drop=None, text_tokens=None, repeat=1):
    """Arguments of the DiT from a fixture's inputs; `drop` a mask of withheld codes, `text_tokens` cuts the glyphs."""
    found = {name: fixture[prefix + name].repeat(repeat, 0) for name in DIT_INPUTS}
    ids = found["prior_token_id"]
    drop = np.zeros(ids.shape, bool) if drop is None else drop
    glyphs = found["encoder_hidden_states"][:, :text_tokens]
    return (subject.floats(found["hidden_states"]), subject.floats(glyphs),
            subject.ids(ids, subject.dit_config.prior_vq_quantizer_codebook_size), subject.bools(drop),
            subject.numbers(found["timestep"]), subject.numbers(found["target_size"]),
            subject.numbers(found["crop_coords"]))


def dit_t2i(subject, fixture):
    """Every part of a pass, then passes with codes withheld, without glyphs and on other grids."""
    dit, config = subject.dit, subject.dit_config
    times = subject.numbers(fixture["time.in"])
    sizes = subject.numbers([0.0, 64.0, 1024.0, 2048.0])
    table = [subject.numbers(frequencies(width)) for width in (config.time_embed_dim, config.condition_dim)]
    yield Found("time.sincos", array(sinusoids(times, table[0])), tolerance=SINCOS_TOLERANCE)
    yield Found("time.cond_sincos", array(sinusoids(sizes, table[1])), tolerance=2 * SINCOS_TOLERANCE)
    inputs = dit_inputs(subject, fixture, "in.")
    h, w, glyphs = inputs[0].shape[2] // 2, inputs[0].shape[3] // 2, inputs[1].shape[1]
    for name, rotary in zip(("rope_cos", "rope_sin"), rotary_tables(h, w, glyphs, config.attention_head_dim)):
        yield Found(name, array(rotary)[0, 0, glyphs:])
    yield from _dit_parts(subject, inputs)
    ids = fixture["in.prior_token_id"]
    row1 = np.zeros(ids.shape, bool)
    row1[1] = True
    for name, drop in (("uncond", ~np.zeros(ids.shape, bool)), ("mixed", fixture["in.mixed_drop"]),
                       ("row1_dropped", row1)):
        yield Found(f"out.{name}", array(dit(*dit_inputs(subject, fixture, "in.", drop))))
    yield Found("out.no_text", array(dit(*dit_inputs(subject, fixture, "in.", text_tokens=0))))
    for name in ("tall", "odd"):
        yield Found(f"{name}.out", array(dit(*dit_inputs(subject, fixture, f"{name}.in."))))


def _dit_parts(subject, inputs):
    dit = subject.dit
    names = ("image_projector", "prior_projector", "glyph_projector", "norm_out", "proj_out")
    cells = {name: getattr(dit, name) for name in names}
    cells.update({"temb": dit.time_condition_embed, "norm1": dit.transformer_blocks[0].norm1,
                  "attn1": dit.transformer_blocks[0].attn1})
    cells.update({f"block{i}": block for i, block in enumerate(dit.transformer_blocks)})
    with watched(cells) as seen:
        out = dit(*inputs)
    for name in (*names[:3], "temb"):
        yield Found(name, array(seen[name][0]))
    for i, part in enumerate(seen["norm1"][0]):  # modulated tokens of both streams (0 and 5) and eight vectors
        yield Found(f"b0.norm1.{i}", array(part) if i in (0, 5) else array(part).reshape(part.shape[0], -1))
    attended, glyphs = array(_first(seen["attn1"][0])), inputs[1].shape[1]
    yield Found("b0.attn1.0", attended[:, glyphs:])
    yield Found("b0.attn1.1", attended[:, :glyphs])
    for i in range(len(dit.transformer_blocks)):
        yield Found(f"block{i}.0", array(seen[f"block{i}"][0][0]))
        yield Found(f"block{i}.1", array(seen[f"block{i}"][0][1]))
    yield Found("norm_out", array(seen["norm_out"][0]))
    yield Found("proj_out", array(seen["proj_out"][0]))
    yield Found("out.cond", array(out))
    if subject.dtype == "bf16":
        yield Found("bf16.out.cond", array(out), note="beside the public class's own bfloat16 run")


def _first(output):
    """The tokens of an attention that may also hand back its keys and values."""
    return output[0] if isinstance(output, tuple) else output


def scheduler(subject, fixture):
    """Times and noise shares for several sizes, with the released numbers and the model's own, and four steps."""
    cases = fixture["cases"]
    mus = []
    for case in cases:
        own = Scheduler() if case["key"].startswith("release") else subject.scheduler
        height, width, steps = map(int, case["key"].split(".")[1].split("x"))
        timesteps, sigmas = own.tables(height // 8, width // 8, steps)
        mu = own.mu(case["seq"])
        mus.append(case if math.isclose(mu, case["mu"], rel_tol=1e-12) else {**case, "mu": mu})
        yield Found(f"{case['key']}.timesteps", timesteps, HOST)
        yield Found(f"{case['key']}.sigmas", sigmas, HOST)
    yield Found("cases", mus, EXACT)
    own = Scheduler()
    timesteps, sigmas = own.tables(64, 64, len(fixture["step.timesteps"]))  # 64 x 64 latent pixels: mu 1.75
    yield Found("step.timesteps", timesteps, HOST)
    yield Found("step.sigmas", sigmas, HOST)
    x = fixture["step.x0"]
    for i in range(len(timesteps)):
        x = own.step(x, fixture[f"step.v{i}"], i)
        yield Found(f"step.x{i + 1}", x, HOST)


def vae(subject, fixture):
    """Every level both ways; decoding starts from our own latents, then from given noise."""
    model = subject.vae
    for name in ("latents_mean", "latents_std"):
        yield Found(name, np.asarray(getattr(model.config, name), np.float32), HOST)
    image = subject.floats(fixture["in.image"])
    encoder, decoder = model.encoder, model.decoder
    cells = {"moments": encoder, "enc.conv_in": encoder.conv_in, "enc.mid": encoder.mid_block,
             "dec.conv_in": decoder.conv_in, "dec.mid": decoder.mid_block}
    cells.update({f"enc.down{i}": block for i, block in enumerate(encoder.down_blocks)})
    cells.update({f"dec.up{i}": block for i, block in enumerate(decoder.up_blocks)})
    with watched(cells) as seen:
        mode, _ = model.moments(image)
        latents = model.encode(image)
        decoded = model.decode(latents)
    down = [f"enc.down{i}" for i in range(len(encoder.down_blocks))]
    up = [f"dec.up{i}" for i in range(len(decoder.up_blocks))]
    for name in ("enc.conv_in", *down, "enc.mid", "moments"):
        yield Found(name, array(seen[name][0]))
    yield Found("mode", array(mode))
    yield Found("normalized", array(latents))
    for name in ("dec.conv_in", "dec.mid", *up):
        yield Found(name, array(seen[name][0]))
    yield Found("decoded", array(decoded))
    pixels = array(model.decode(subject.floats(fixture["noise_latent"])))
    yield Found("noise_decoded", pixels)
    yield Found("postprocessed_np", unit_images(pixels))
    reference = fixture["noise_decoded"]  # rounding to 8 bits is exact only from the same numbers
    yield Found("postprocessed_u8", pixels_of(reference), EXACT)
    height, width = fixture["preprocess.out"].shape[2:]
    source = Image.fromarray(fixture["preprocess.image"])
    yield Found("preprocess.out", preprocess(source, height, width)[None], HOST)


def unit_images(images_NCHW) -> np.ndarray:
    """Images in [-1, 1] -> (N, H, W, 3) in 0..1, clamped."""
    return np.clip(images_NCHW / 2 + 0.5, 0, 1).transpose(0, 2, 3, 1)
