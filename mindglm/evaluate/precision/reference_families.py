"""Image to image: source images in the prompt, in the DiT and in whole runs (see ar_families.py).

Shapes: B batch, S prompt length, R reference tokens, H heads, K head width.
"""

import mindspore as ms
import numpy as np
from PIL import Image

from mindglm.evaluate.precision.ar_families import greedy, packed, sample_grids, tokens
from mindglm.evaluate.precision.compare import CHOICE, EXACT, Found
from mindglm.evaluate.precision.picture_families import dit_inputs
from mindglm.evaluate.precision.subject import array
from mindglm.models.ar_generator import positions
from mindglm.models.ar_generator.processor import with_codes
from mindglm.models.dit_decoder.conditions import upsample_codes
from mindglm.models.dit_decoder.references import join_images, stack_samples


def ar_i2i(subject, fixture):
    """A prompt with two source images, then a batch of two prompts with one each."""
    config = subject.ar_config
    for prefix in ("multi.", "batch."):
        ids_BS, valid_BS = fixture[prefix + "in.input_ids"], fixture[prefix + "in.attention_mask"] == 1
        grids = sample_grids(fixture[prefix + "in.image_grid_thw"], fixture[prefix + "in.images_per_sample"])
        sources, targets = [own[:-1] for own in grids], [own[-1:] for own in grids]
        flat = np.array([(1, *grid) for own in sources for grid in own])
        images = packed(fixture[prefix + "in.pixel_values"], flat)
        codes = [array(subject.tokenizer.quantize(subject.tokenizer(subject.floats(patches), h, w)))
                 for patches, h, w in images]
        yield Found(prefix + "codes", np.concatenate(codes), CHOICE)
        given = iter(np.split(fixture[prefix + "codes"], np.cumsum([h * w for _, h, w in flat])[:-1]))
        ids_BS = np.array([with_codes(ids, [next(given) for _ in own], config.image_token_id)
                           for ids, own in zip(ids_BS, sources, strict=True)])
        yield Found(prefix + "input_ids_with_codes", ids_BS, EXACT)
        at_3BS, after = positions.prefill_positions(ids_BS, valid_BS, sources, config.image_start_token_id,
                                                    config.image_end_token_id)
        decode_3BL = positions.decode_positions(after, targets)
        yield Found(prefix + "prefill.position_ids", at_3BS, EXACT)
        yield Found(prefix + "decode.position_ids", decode_3BL.transpose(1, 0, 2), EXACT)
        logits = subject.ar(tokens(subject, ids_BS), subject.ids(at_3BS), subject.bools(valid_BS))
        yield Found(prefix + "prefill.logits", array(logits), where=valid_BS)
        prompt_BS = fixture[prefix + "in.input_ids"]  # the public class hands placeholders back
        yield from greedy(subject, fixture, prefix, ids_BS, valid_BS, at_3BS, decode_3BL, prompt_BS)


def dit_i2i(subject, fixture):
    """References written, then read by one picture, shared by two, one each, and two pictures a sample."""
    dit = subject.dit
    written = []
    for i in range(2):
        velocity, cache = write(subject, dit, fixture[f"ref{i}.lat"], fixture[f"ref{i}.ids"], fixture[f"ref{i}.size"])
        written.append(cache)
        yield Found(f"A.write_out{i}", array(velocity))
    both = join_images(written)
    for layer in sorted({0, len(both) - 1}):
        for name, tensor in zip("kv", both[layer], strict=True):
            yield Found(f"A.cache{layer}.{name}", array(tensor).transpose(0, 2, 1, 3))  # theirs is (n, R, H, K)
    inputs = dit_inputs(subject, fixture, "A.in.")
    yield Found("A.read", array(dit(*inputs, None, both)))
    withheld = array(dit(*dit_inputs(subject, fixture, "A.in.", np.ones(inputs[2].shape, bool))))
    yield Found("A.skip", withheld)
    yield Found("A.plain_uncond", withheld)
    yield Found("B.read_shared", array(dit(*dit_inputs(subject, fixture, "B.in."), None, both)))
    each, mask = stack_samples(written)
    mask = None if mask is None else subject.bools(mask)
    yield Found("C.read_two", array(dit(*dit_inputs(subject, fixture, "B.in."), None, each, mask)))
    yield Found("C.read_four", array(dit(*dit_inputs(subject, fixture, "B.in.", repeat=2), None, each, mask)))


def write(subject, dit, latents_1Chw, ids_N, size_12):
    """(velocity, Cache) of one reference image."""
    limit = subject.dit_config.prior_vq_quantizer_codebook_size
    return dit.write(subject.floats(latents_1Chw), subject.ids(ids_N[None], limit), subject.numbers(size_12))


def pipeline_sources(subject, fixture, picture, large_codes):
    """The three image-to-image runs; `picture` and `large_codes` are the text-to-image family's."""
    own, args, noise = subject.pipeline, fixture["args"], fixture["noise"]
    size = args["height"], args["width"]
    sources = [Image.fromarray(fixture[f"i2i.source{i}"]) for i in range(2)]
    single = [fixture["i2i.prompt"]]
    runs = (("i2i_one.", single, [sources[:1]], [""]), ("i2i_two.", single, [sources], [""]),
            ("i2i_batch.", fixture["i2i_batch.prompts"], [sources[:1], sources[1:]], ["0", "1"]))
    for prefix, prompts, images, suffixes in runs:
        references = own.read_images(images, len(prompts))
        for suffix, read in zip(suffixes, references, strict=True):
            grids = [[1, *(2 * side for side in image.codes.shape)] for image in read]
            doubled = [upsample_codes(image.codes[None])[0] for image in read]
            yield Found(f"{prefix}source_grid{suffix}", np.array(grids), EXACT)
            yield Found(f"{prefix}prior_token_image_ids{suffix}", np.concatenate(doubled), CHOICE)
        codes = large_codes(fixture[prefix + "prior_token_ids"], *size)
        if subject.dtype == "fp32":
            generators = [np.random.default_rng(i) for i in range(len(prompts))]
            codes = own.sample_codes(prompts, *size, generators, references=references)
            yield Found(prefix + "prior_token_ids", upsample_codes(codes), CHOICE)
        yield from picture(own, prefix, noise[:len(prompts)], codes, own.glyph_features(prompts), args, references)


class ReadingNetwork(ms.nn.Cell):
    """The flow-matching loss of a pass that reads a reference image; the gradient reaches the weights by both ways."""

    def __init__(self, model):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, reference_1Chw, reference_ids_1N, reference_size_12, target_BChw, *inputs):
        cache = self.model.write(reference_1Chw, reference_ids_1N, reference_size_12)[1]
        error = self.model(*inputs, None, cache).float() - target_BChw
        return (error * error).mean() * float(target_BChw.shape[0]), ms.Tensor(float(target_BChw.shape[0]))
