"""What the AR generator's side computes: prompts and pixels, image codes, the decoder, the choice of the next code.

Each function is a family of the card: it reads the inputs of a fixture and yields what mindglm computes from them, in
the order of the computation, each value from our own earlier ones (so the first departure is where the cause is).

Shapes: B batch, S prompt length, L generated length, P values of a patch.
"""

import numpy as np

from mindglm.evaluate.precision.compare import CHOICE, EXACT, HOST, Found
from mindglm.evaluate.precision.subject import array, watched
from mindglm.generate.ar_sampler import pad_prompts
from mindglm.generate.sampling import SamplingConfig, filter_logits
from mindglm.models.ar_generator import positions
from mindglm.models.ar_generator.processor import smart_resize, target_grids

RELEASED_PIXELS = {"factor": 16, "min_pixels": 512**2, "max_pixels": 2048**2}


def processor(subject, fixture):
    """Grids of a target size, prompt ids alone and in a batch, source images as patches, the size they are seen at."""
    own = subject.processor
    yield Found("target_shape", [[size, [*grids[0], *grids[1]]] for size, _ in fixture["target_shape"]
                                 for grids in [target_grids(*size)]], EXACT)
    cases, told = fixture["t2i_cases"], []
    for i, case in enumerate(cases):
        prompt, size = case["prompt"], (case["height"], case["width"])
        told.append({**case, "text": own.prompt_text(prompt, *size)})
        ids_BS, valid_BS = pad_prompts([own.prompt_ids(prompt, *size)], subject.ar_config.image_end_token_id)
        yield from _prompt(f"t2i{i}.", ids_BS, valid_BS, [target_grids(*size)])
    yield Found("t2i_cases", told, EXACT)
    batch = [own.prompt_ids(case["prompt"], 64, 64) for case in cases[:2]]
    ids_BS, valid_BS = pad_prompts(batch, subject.ar_config.image_end_token_id)
    yield from _prompt("t2i_batch.", ids_BS, valid_BS, [target_grids(64, 64)] * 2)
    yield Found("smart_resize_release", [[size, list(smart_resize(*size, **RELEASED_PIXELS))]
                                         for size, _ in fixture["smart_resize_release"]], EXACT)
    for i in range(3):
        patches_NP, grid = own.image_patches(fixture[f"image{i}"])
        yield Found(f"image{i}.grid", np.array([[1, *grid]]), EXACT)
        yield Found(f"image{i}.pixel_values", patches_NP, HOST)
    sources = [own.image_patches(fixture[f"image{i}"]) for i in range(2)]
    grids = [grid for _, grid in sources]
    yield Found("i2i_text", own.prompt_text("mix them", 64, 64, grids), EXACT)
    ids_BS, valid_BS = pad_prompts([own.prompt_ids("mix them", 64, 64, grids)], subject.ar_config.image_end_token_id)
    yield from _prompt("i2i.", ids_BS, valid_BS, [[*grids, target_grids(64, 64)[0]]])
    yield Found("i2i.pixel_values", np.concatenate([patches for patches, _ in sources]), HOST)


def _prompt(prefix, ids_BS, valid_BS, grids):
    flat = [grid for sample in grids for grid in sample]
    yield Found(prefix + "input_ids", ids_BS, EXACT)
    yield Found(prefix + "attention_mask", valid_BS, EXACT)
    yield Found(prefix + "image_grid_thw", np.array([[1, *grid] for grid in flat]), EXACT)
    yield Found(prefix + "images_per_sample", np.array([len(sample) for sample in grids]), EXACT)


def vision_vq(subject, fixture):
    """Patches -> tower -> codes, two images of different sizes, then position sampling at other sizes."""
    tokenizer = subject.tokenizer
    visual, vq = tokenizer.model.visual, tokenizer.model.vqmodel
    images = packed(fixture["in.pixel_values"], fixture["in.image_grid_thw"])
    cells = {"patch_embed": visual.patch_embed, "pos_embed": visual.embeddings, "z": vq.quant_conv,
             "distances": vq.quantize}
    cells.update({f"block{i}": block for i, block in enumerate(visual.blocks)})
    features, codes = [], []
    with watched(cells) as seen:
        for patches_NP, h, w in images:
            features.append(tokenizer(subject.floats(patches_NP), h, w))
            codes.append(tokenizer.quantize(features[-1]))

    def rows(name):
        return np.concatenate([array(x).reshape(-1, x.shape[-1]) for x in seen[name]])

    yield Found("patch_embed", rows("patch_embed"))
    yield Found("pos_embed", rows("pos_embed"))
    yield Found("embeddings", rows("patch_embed") + rows("pos_embed"))
    for i in range(len(visual.blocks)):
        yield Found(f"block{i}", rows(f"block{i}"))
    for i, (_, h, w) in enumerate(images):
        yield Found(f"feat{i}", _channels_first(features[i], h, w))
        yield Found(f"quant_conv{i}", _channels_first(seen["z"][i], h, w)[None])
        yield Found(f"distances{i}", array(seen["distances"][i]).reshape(h * w, -1))
    found = np.concatenate([array(c).reshape(-1) for c in codes])
    yield Found("codes", found, CHOICE)
    start = 0
    for i, (_, h, w) in enumerate(images):  # the reference's codes: a wrong choice has been named above
        chosen = subject.ids(fixture["codes"][start : start + h * w])
        yield Found(f"quantized{i}", _channels_first(vq.quantize.unit_codebook()[chosen], h, w)[None])
        start = start + h * w
    yield from _interpolation(subject, fixture)


def _interpolation(subject, fixture):
    for name in ("same", "up", "thin"):
        _, h, w = fixture[f"interp.{name}.grid"][0].tolist()
        yield Found(f"interp.{name}.pos_embed", array(subject.tokenizer.model.visual.embeddings(h, w)))
        if f"interp.{name}.out" in fixture:
            patches_NP = subject.floats(fixture[f"interp.{name}.pixel_values"])
            yield Found(f"interp.{name}.out", array(subject.tokenizer(patches_NP, h, w)))


def packed(pixels_NP, grids):
    """Rows of several images one after the other -> [(patches of one image, h, w)]."""
    edges = np.cumsum([0, *(int(h * w) for _, h, w in grids)])
    return [(pixels_NP[a:b], int(h), int(w)) for a, b, (_, h, w) in zip(edges[:-1], edges[1:], grids)]


def _channels_first(rows, h, w):
    """(h * w, C) or (1, h * w, C) -> (C, h, w)"""
    return array(rows).reshape(h * w, -1).T.reshape(-1, h, w)


def ar_t2i(subject, fixture):
    """One prompt: positions, every layer of a prefill, cached decoding, teacher forcing, greedy codes."""
    model = subject.ar
    ids_BS = fixture["in.input_ids"]
    grids = sample_grids(fixture["in.image_grid_thw"], fixture["in.images_per_sample"])
    at_3BS, after = positions.prefill_positions(ids_BS, fixture["in.attention_mask"] == 1)
    decode_3BL = positions.decode_positions(after, grids)
    yield Found("prefill.position_ids", at_3BS, EXACT)
    yield Found("decode.position_ids", decode_3BL.transpose(1, 0, 2), EXACT)
    yield from _prefill_layers(subject, fixture, ids_BS, at_3BS)

    forced_BL = fixture["forced_tokens"]
    logits, cache = model.prefill(tokens(subject, ids_BS), subject.ids(at_3BS))
    steps = []
    for n in range(forced_BL.shape[1]):
        logits, cache = model.decode(tokens(subject, forced_BL[:, n : n + 1]),
                                     subject.ids(decode_3BL[:, :, n : n + 1]), cache)
        steps.append(array(logits))
    yield Found("decode.logits", np.stack(steps, 1))

    whole_BS = np.concatenate([ids_BS, forced_BL], 1)
    large, preview = grids[0]
    whole_3BS = positions.training_positions(ids_BS.shape[1], [large, preview])[:, None]
    yield Found("teacher.input_ids", whole_BS, EXACT)
    yield Found("teacher.position_ids", whole_3BS, EXACT)
    yield Found("teacher.logits", array(model(tokens(subject, whole_BS), subject.ids(whole_3BS))))
    yield from greedy(subject, fixture, "", ids_BS, np.ones(ids_BS.shape, bool), at_3BS, decode_3BL)


def _prefill_layers(subject, fixture, ids_BS, at_3BS):
    language = subject.ar.model.language_model
    first, count = language.layers[0], len(language.layers)
    parts = ("input_layernorm", "self_attn", "post_self_attn_layernorm", "post_attention_layernorm", "mlp",
             "post_mlp_layernorm")
    cells = {f"l0.{name}": getattr(first, name) for name in parts}
    cells.update({f"layer{i}": layer for i, layer in enumerate(language.layers)})
    cells.update({"rotary": language.rotary, "embed": language.embed_tokens, "norm": language.norm})
    with watched(cells) as seen:
        logits = subject.ar(tokens(subject, ids_BS), subject.ids(at_3BS))
    for name, table in zip(("rope_cos", "rope_sin"), seen["rotary"][0], strict=True):
        yield Found(f"prefill.{name}", array(table)[:, 0])
    yield Found("prefill.embed", array(seen["embed"][0]))
    for i in range(count):
        out, (k, v) = seen[f"layer{i}"][0]
        if i == 0:
            yield Found("prefill.l0.input_layernorm", array(seen["l0.input_layernorm"][0]))
        if i in (0, count - 1):
            yield Found(f"prefill.cache{i}.k", array(k))
            yield Found(f"prefill.cache{i}.v", array(v))
        if i == 0:
            yield Found("prefill.l0.self_attn.0", array(seen["l0.self_attn"][0][0]))
            for name in parts[2:]:
                yield Found(f"prefill.l0.{name}", array(seen[f"l0.{name}"][0]))
        yield Found(f"prefill.layer{i}", array(out))
    yield Found("prefill.norm", array(seen["norm"][0]))
    yield Found("prefill.logits", array(logits))
    if subject.dtype == "bf16":
        yield Found("bf16.prefill.logits", array(logits), note="beside the public class's own bfloat16 run")


def ar_batch(subject, fixture):
    """Two prompts of different length, padded on the left, with different target grids."""
    ids_BS, valid_BS = fixture["in.input_ids"], fixture["in.attention_mask"] == 1
    own_ids = [subject.processor.tokenizer.encode(text).ids for text in fixture["texts"]]
    padded_BS, own_valid_BS = pad_prompts(own_ids, subject.ar_config.image_end_token_id)
    yield Found("in.input_ids", padded_BS, EXACT)
    yield Found("in.attention_mask", own_valid_BS, EXACT)
    grids = sample_grids(fixture["in.image_grid_thw"], fixture["in.images_per_sample"])
    at_3BS, after = positions.prefill_positions(ids_BS, valid_BS)
    decode_3BL = positions.decode_positions(after, grids)
    yield Found("prefill.position_ids", at_3BS, EXACT)
    yield Found("decode.position_ids", decode_3BL.transpose(1, 0, 2), EXACT)
    logits = subject.ar(tokens(subject, ids_BS), subject.ids(at_3BS), subject.bools(valid_BS))
    yield Found("prefill.logits", array(logits), where=valid_BS)
    yield from greedy(subject, fixture, "", ids_BS, valid_BS, at_3BS, decode_3BL)


def greedy(subject, fixture, prefix, ids_BS, valid_BS, at_3BS, decode_3BL, listed_BS=None):
    """The likeliest code again and again; what is fed is the reference's choice, so that one slip stays one.

    listed_BS: the prompt as the reference lists it before the codes it writes; None: as it is fed.
    """
    model, prompt = subject.ar, ids_BS.shape[1]
    written_BL = fixture[prefix + "greedy.sequences"][:, prompt:]
    padded = not valid_BS.all()
    logits, cache = model.prefill(tokens(subject, ids_BS), subject.ids(at_3BS),
                                  subject.bools(valid_BS) if padded else None)
    seen = []
    for n in range(written_BL.shape[1]):
        seen.append(array(logits))
        valid_BS = np.pad(valid_BS, ((0, 0), (0, 1)), constant_values=True)
        logits, cache = model.decode(tokens(subject, written_BL[:, n : n + 1]),
                                     subject.ids(decode_3BL[:, :, n : n + 1]), cache,
                                     subject.bools(valid_BS) if padded else None)
    seen_BLC = np.stack(seen, 1)
    yield Found(prefix + "greedy.logits", seen_BLC)
    chosen_BL = seen_BLC[:, :, : subject.ar_config.num_codes].argmax(-1)  # the reference run suppresses other ids
    listed_BS = ids_BS if listed_BS is None else listed_BS
    yield Found(prefix + "greedy.sequences", np.concatenate([listed_BS, chosen_BL], 1), CHOICE)


def sampling(subject, fixture):
    """Temperature, top-k, top-p."""
    logits = fixture["logits"]
    tied = (np.sort(logits, -1)[:, 1:] == np.sort(logits, -1)[:, :-1]).any(-1)
    for name in ("release", "t1_k0_p05", "t07_k5_p1"):
        temperature, top_k, top_p = fixture[f"{name}.params"]
        kept = filter_logits(logits, SamplingConfig(True, temperature, int(top_k), top_p))
        reference = fixture[f"{name}.filtered"]
        # Of equal logits top-p keeps as many as the reference; which of them is its unstable sort's own business.
        alike = np.isclose(np.sort(kept, -1), np.sort(reference, -1), rtol=1e-6).all(-1)
        ours = np.where((tied & alike)[:, None], reference, kept)
        shares = np.exp(ours - ours.max(-1, keepdims=True))
        yield Found(f"{name}.filtered", ours, HOST)
        yield Found(f"{name}.probs", shares / shares.sum(-1, keepdims=True), HOST)


def sample_grids(grids_N3, per_sample_B) -> list[list[tuple[int, int]]]:
    """Grids of the whole batch, in order -> per sample its (rows, columns)."""
    edges = np.cumsum([0, *per_sample_B.tolist()])
    return [[(int(h), int(w)) for _, h, w in grids_N3[a:b]] for a, b in zip(edges[:-1], edges[1:])]


def tokens(subject, ids):
    return subject.ids(ids, subject.ar_config.text_config.vocab_size)
