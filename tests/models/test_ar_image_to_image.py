"""The AR generator with source images in the prompt, against the public class (fixture family `ar_i2i`)."""

import numpy as np
import pytest
from mindspore import Tensor

from mindglm.checkpoint.released import component_config
from mindglm.models.ar_generator import hf_names
from mindglm.models.ar_generator.config import from_hf
from mindglm.models.ar_generator.model import ArGenerator
from mindglm.models.ar_generator.positions import decode_positions, prefill_positions
from mindglm.models.ar_generator.processor import Processor, with_codes
from mindglm.models.ar_generator.vision import VisionTokenizer
from tests import golden

TOLERANCE = 1e-5
CONFIG = from_hf(component_config(golden.REPO, hf_names.COMPONENT))


@pytest.fixture(scope="module")
def model():
    return golden.load(ArGenerator(CONFIG), hf_names.COMPONENT)


@pytest.fixture(scope="module")
def tokenizer():
    return golden.load(VisionTokenizer(CONFIG), hf_names.COMPONENT)


@pytest.fixture(scope="module", params=["multi.", "batch."])
def case(request):
    """One prompt with two images of different grids; then a left-padded batch, an image each, other target grids."""
    found = {name.removeprefix(request.param): array for name, array in golden.fixture("ar_i2i").items()
             if name.startswith(request.param)}
    grids = [tuple(grid) for grid in found["in.image_grid_thw"][:, 1:].tolist()]
    found["source"], found["target"] = [], []
    for count in found["in.images_per_sample"].tolist():
        *source, target = grids[:count]
        grids = grids[count:]
        found["source"].append(source)
        found["target"].append([target])
    found["valid"] = found["in.attention_mask"] == 1
    return found


def ids(array):
    return Tensor(np.ascontiguousarray(array).astype(np.int32))


def test_codes_and_their_places(tokenizer, case):
    """Each image is tokenised alone; its codes replace its placeholders."""
    codes, patches = [], case["in.pixel_values"]
    for rows, columns in (grid for source in case["source"] for grid in source):
        features = tokenizer(Tensor(patches[:rows * columns]), rows, columns)
        codes.append(tokenizer.quantize(features).asnumpy().reshape(rows, columns))
        patches = patches[rows * columns:]
    assert len(patches) == 0
    np.testing.assert_array_equal(np.concatenate([grid.reshape(-1) for grid in codes]), case["codes"])
    for row, (prompt, source) in enumerate(zip(case["in.input_ids"], case["source"])):
        own, codes = codes[:len(source)], codes[len(source):]
        filled = with_codes(prompt, own, CONFIG.image_token_id)
        np.testing.assert_array_equal(filled, case["input_ids_with_codes"][row])


def test_positions(case):
    at, after = prefill_positions(case["input_ids_with_codes"], case["valid"], case["source"],
                                  CONFIG.image_start_token_id, CONFIG.image_end_token_id)
    np.testing.assert_array_equal(at, case["prefill.position_ids"])
    np.testing.assert_array_equal(decode_positions(after, case["target"]).transpose(1, 0, 2),
                                  case["decode.position_ids"])


def test_prefill_and_greedy_decoding_with_the_cache(model, case):
    """Every code is fed back with its own position; logits agree at each step, and so does the choice."""
    prompt, at, valid = ids(case["input_ids_with_codes"]), ids(case["prefill.position_ids"]), case["valid"]
    logits = model(prompt, at, Tensor(valid)).asnumpy()
    assert golden.rel_error(logits[valid], case["prefill.logits"][valid]) <= TOLERANCE
    written = case["greedy.sequences"][:, valid.shape[1]:]
    columns = case["decode.position_ids"].transpose(1, 0, 2)
    logits, cache = model.prefill(prompt, at, Tensor(valid))
    for n in range(written.shape[1]):
        assert golden.rel_error(logits, case["greedy.logits"][:, n]) <= TOLERANCE, f"step {n}"
        # The reference run suppresses the ids beyond the codes; so does this choice.
        np.testing.assert_array_equal(logits.asnumpy()[:, :CONFIG.num_codes].argmax(-1), written[:, n])
        valid = np.pad(valid, ((0, 0), (0, 1)), constant_values=True)
        logits, cache = model.decode(ids(written[:, n:n + 1]), ids(columns[:, :, n:n + 1]), cache, Tensor(valid))


def test_prompts_with_images_of_the_public_processor():
    """Chat template, placeholders, one target grid, no preview; pixels and grids of the images."""
    data, processor = golden.fixture("processor"), Processor.from_pretrained(golden.REPO)
    patches, grids = zip(*(processor.image_patches(data[f"image{i}"]) for i in range(2)))
    assert processor.prompt_text("mix them", 64, 64, grids) == golden.side_car("processor")["i2i_text"]
    assert processor.prompt_ids("mix them", 64, 64, grids) == data["i2i.input_ids"][0].tolist()
    large, _ = processor.target_grids(64, 64)
    assert [[1, *grid] for grid in (*grids, large)] == data["i2i.image_grid_thw"].tolist()
    assert golden.rel_error(np.concatenate(patches), data["i2i.pixel_values"]) <= 1e-6


def test_prompts_of_the_pipelines_batch_are_those_of_the_model(case):
    texts = golden.side_car("ar_i2i")
    texts = texts["multi.texts" if len(case["source"]) == 1 else "batch.texts"]
    processor = Processor.from_pretrained(golden.REPO)
    for text, prompt, valid, source, (target,) in zip(texts, case["in.input_ids"], case["valid"], case["source"],
                                                      case["target"]):
        words = text.rsplit(processor.image_end, 1)[1].split(processor.grid_start)[0]
        height, width = 32 * target[0], 32 * target[1]
        assert processor.prompt_text(words, height, width, source) == text
        assert processor.prompt_ids(words, height, width, source) == prompt[valid].tolist()
