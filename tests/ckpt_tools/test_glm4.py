"""--from glm4: what starts from a GLM-4 computes what the torch GLM-4 computes; new rows come from the seed."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from mindspore import Tensor
from safetensors.numpy import load_file

from ckpt_tools import convert
from mindglm import ops
from mindglm.checkpoint import glm4, released, seal
from mindglm.checkpoint.tensors import to_bfloat16
from mindglm.models.ar_generator import glm4_names
from mindglm.models.ar_generator.config import from_hf
from mindglm.models.ar_generator.model import ArGenerator
from mindglm.models.names import HalfSplitRows
from tests import golden
from tests.ckpt_tools.folders import contents, rewrite

FOLDER = pathlib.Path(golden.__file__).parent / "glm4"
CHECKPOINT, CONFIG = FOLDER / "checkpoint", FOLDER / "ar_config.json"
AR = "vision_language_encoder"
STRUCTURE = from_hf(json.loads(CONFIG.read_text()))
EMBED = "model.language_model.embed_tokens.weight"
SHIFT = STRUCTURE.text_config.vision_vocab_size


def run(*arguments):
    return convert.main(["--from", "glm4", "--to", *(str(argument) for argument in arguments)])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    target = tmp_path_factory.mktemp("glm4") / "ar"
    assert run("mindglm", CHECKPOINT, target, "--config", CONFIG, "--seed", 7) == 0
    return target


@pytest.fixture(scope="module")
def theirs():
    return {name: array for path in CHECKPOINT.glob("*.safetensors")
            for name, array in released_arrays(path).items()}


def released_arrays(path):
    from mindglm.checkpoint.tensors import TensorFile

    file = TensorFile(path)
    return {name: file.float32(name) for name in file.names}


def hidden_states(tensors) -> float:
    """Relative error of our hidden states after the last norm against the torch GLM-4's."""
    expected = load_file(FOLDER / "expected.safetensors")
    model = ArGenerator(STRUCTURE)
    for parameter in model.get_parameters():
        parameter.set_data(Tensor(tensors[parameter.name]))
    ids = expected["ids"] + SHIFT
    ramp = np.broadcast_to(np.arange(ids.shape[1]), (3, *ids.shape))
    hidden = model.model.language_model(Tensor(ids.astype(np.int32)), Tensor(ramp.astype(np.int32)))[0]
    return golden.rel_error(hidden, expected["hidden"])


def test_it_computes_what_the_torch_glm4_computes(made):
    assert hidden_states(released.read_component(made, AR)) < 1e-5


@pytest.mark.parametrize("part", ["q_proj", "k_proj"])
def test_without_the_permutation_it_does_not(made, theirs, part):
    """The fixture would notice: rows of q or k as they were."""
    tensors = released.read_component(made, AR)
    for name in tensors:
        if f".{part}." in name:
            tensors[name] = theirs["model." + name.removeprefix("model.language_model.")]
    assert hidden_states(tensors) > 1e-2


def test_permutation_is_the_published_one():
    """Section 5.1 of the reference: [0,2,..,62, 1,3,..,63, 64..127] in every head of 128, and back."""
    rows = HalfSplitRows(128, 64)
    order = rows.to_ours(np.arange(256))
    assert order[:128].tolist() == [*range(0, 64, 2), *range(1, 64, 2), *range(64, 128)]
    assert (order[128:] == order[:128] + 128).all()
    assert (rows.to_theirs(order) == np.arange(256)).all()


def test_map_reads_backwards(made, theirs):
    """Every tensor of theirs but the head comes back bit for bit."""
    ours = released.read_component(made, AR)
    pairs = glm4_names.name_map(STRUCTURE, 256)
    assert {pair.theirs for pair in pairs} == set(theirs) - set(glm4_names.UNUSED)
    for pair in pairs:
        assert np.array_equal(pair.rows.to_theirs(ours[pair.ours]), theirs[pair.theirs]), pair.theirs


def test_text_rows_move_and_new_rows_are_those_of_a_run_with_that_seed(made, theirs):
    ours = released.read_component_raw(made, AR)
    assert ours[EMBED].dtype == np.uint16 and set(ours) == {p.name for p in ArGenerator(STRUCTURE).get_parameters()}
    fresh = ArGenerator(STRUCTURE)
    ops.init_parameters(fresh, 7)
    drawn = {p.name: p.asnumpy() / 0.02 * np.float32(0.05) for p in fresh.get_parameters()}  # std of this config
    text = slice(SHIFT, SHIFT + 256)
    assert np.array_equal(ours[EMBED][text], to_bfloat16(theirs["model.embed_tokens.weight"]))
    head = "lm_head.weight"
    for rows, values in ((ours[EMBED][:SHIFT], drawn[EMBED][:SHIFT]), (ours[head], drawn[head])):
        np.testing.assert_allclose(released.to_float32(rows), values, rtol=2.0**-7)
    assert ours[EMBED][SHIFT + 256:].any()


def test_seed_decides_the_new_rows_only(tmp_path, made):
    glm4.convert(CHECKPOINT, tmp_path / "same", "mindglm", config=CONFIG, seed=7)
    glm4.convert(CHECKPOINT, tmp_path / "other", "mindglm", config=CONFIG, seed=8)
    assert contents(tmp_path / "same") == contents(made)
    a, b = (released.read_component_raw(root, AR) for root in (made, tmp_path / "other"))
    assert {name for name in a if not np.array_equal(a[name], b[name])} == {EMBED, "lm_head.weight"}


def base_folder(root, tensors):
    """A released-layout folder of the fixture's structure, and a further component."""
    config = json.loads(CONFIG.read_text())
    released.write_component(root, AR, config, tensors, "bfloat16", extra_files={"generation_config.json": b"{}"})
    shutil.copytree(golden.REPO / "vae", root / "vae")
    shutil.copytree(golden.REPO / "processor", root / "processor")
    return root


def test_base_gives_tower_vq_and_the_rest(tmp_path, made):
    from mindglm.models.ar_generator import hf_names

    rng = np.random.default_rng(0)
    whole = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in hf_names.tensors(STRUCTURE).items()}
    base = base_folder(tmp_path / "base", whole)
    assert run("hf", CHECKPOINT, tmp_path / "out", "--base", base, "--seed", 7) == 0
    out, given, language = (released.read_component_raw(root, AR) for root in (tmp_path / "out", base, made))
    for name in hf_names.tensors(STRUCTURE):
        expected = language[name] if name in language else given[name]
        assert np.array_equal(out[name], expected), name
    ours, theirs = contents(tmp_path / "out"), contents(base)
    assert set(ours) == set(theirs)
    assert {name for name in ours if ours[name] != theirs[name]} == {f"{AR}/model.safetensors"}
    assert run("mindglm", CHECKPOINT, tmp_path / "sealed", "--base", base, "--seed", 7) == 0
    assert contents(tmp_path / "sealed") | {seal.NAME: None} == ours | {seal.NAME: None}


def test_dtype_is_that_of_the_source_or_as_asked(tmp_path):
    glm4.convert(CHECKPOINT, tmp_path / "wide", "hf", config=CONFIG, dtype="float32")
    assert {code for code, _ in released.component_header(tmp_path / "wide", AR).values()} == {"F32"}
    assert released.component_config(tmp_path / "wide", AR)["dtype"] == "float32"


@pytest.mark.parametrize("spoil, message", [
    (lambda arrays: arrays.pop("model.norm.weight", None), "1 missing: model.norm.weight"),
    (lambda arrays: arrays.update(extra=np.zeros(2, np.uint16)), "unexpected: extra"),
], ids=["missing", "unexpected"])
def test_names_are_checked(tmp_path, capsys, spoil, message):
    source = pathlib.Path(shutil.copytree(CHECKPOINT, tmp_path / "glm4"))
    for path in source.glob("*.safetensors"):
        rewrite(path, spoil)
    index = source / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] = {name: path.name for path in sorted(source.glob("*.safetensors"))
                             for name in released_arrays(path)}
    index.write_text(json.dumps(content))
    code = run("mindglm", source, tmp_path / "out", "--config", CONFIG)
    assert code == 2 and message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_another_structure_is_refused_number_by_number(tmp_path, capsys):
    assert run("mindglm", CHECKPOINT, tmp_path / "out") == 2  # the released structure
    told = capsys.readouterr().err
    assert "hidden_size is 48, expected 4096" in told and "num_hidden_layers is 2, expected 40" in told
    assert run("mindglm", golden.REPO / AR, tmp_path / "out", "--config", CONFIG) == 2
    assert "model_type is 'glm_image', expected 'glm4'" in capsys.readouterr().err
    config = json.loads(CONFIG.read_text())
    config["text_config"]["vocab_size"] = SHIFT + 255
    config["text_config"]["pad_token_id"] = config["image_token_id"] = SHIFT
    (tmp_path / "small.json").write_text(json.dumps(config))
    assert run("mindglm", CHECKPOINT, tmp_path / "out", "--config", tmp_path / "small.json") == 2
    assert "vocab_size is 256, expected at most 255" in capsys.readouterr().err
