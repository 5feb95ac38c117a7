"""pretrained_model_dir may name a released folder, a run, or one checkpoint of it."""

import numpy as np
import pytest

from ckpt_tools import convert
from mindglm.checkpoint import released, start
from mindglm.checkpoint.tensors import to_float32
from mindglm.errors import UserError
from tests.ckpt_tools.test_training_checkpoints import AR, DIT, checkpoint
from tests.golden import REPO


def values(model_dir, name):
    found = start.component(model_dir, name)
    return {tensor: np.array(to_float32(found.read(tensor))) for tensor in found.header}


def same(first, second):
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_a_released_folder_is_read_as_it_is():
    assert start.base(REPO) == str(REPO) and start.holds_any(REPO) and start.base(None) is None
    same(values(REPO, DIT), released.read_component(REPO, DIT))
    assert start.component(REPO / "vae", DIT).header == {} and not start.holds_any(REPO / "vae")


@pytest.mark.parametrize("at", ["", "checkpoint", "checkpoint/iteration_00000003"])
@pytest.mark.parametrize("ema, added", [(True, 2), (False, 1)])
def test_a_run_gives_its_weights_and_the_rest_of_where_it_began(tmp_path, at, ema, added):
    """The average where there is one; the shapes and names are those of a released folder."""
    before = checkpoint(tmp_path / "run", DIT, ema=ema)
    same(values(tmp_path / "run" / at, DIT), {name: array + np.float32(added) for name, array in before.items()})
    assert start.base(tmp_path / "run" / at) == str(REPO)
    same(values(tmp_path / "run" / at, "vae"), released.read_component(REPO, "vae"))
    assert start.component(tmp_path / "run", DIT).header == {
        name: ("F32", shape) for name, (_, shape) in released.component_header(REPO, DIT).items()}


def test_a_run_that_began_from_a_run(tmp_path):
    """The nearest run that trained a component decides; a part that was not trained lies where the first began."""
    ar = released.component_header(REPO, AR)
    tower, language = ([name for name in ar if ("visual" in name) is wanted] for wanted in (True, False))
    checkpoint(tmp_path / "a", AR, tower, "vq_reconstruction", "ArGenerator", ema=False)
    checkpoint(tmp_path / "b", AR, language, "ar_next_token", "ArGenerator", begin=tmp_path / "a")
    checkpoint(tmp_path / "c", DIT, begin=tmp_path / "b")
    given, found = released.read_component(REPO, AR), values(tmp_path / "c", AR)
    assert set(found) == set(given) and start.base(tmp_path / "c") == str(REPO)
    for name, array in given.items():
        assert np.array_equal(found[name], array + np.float32(1 if name in tower else 2)), name
    assert np.array_equal(values(tmp_path / "c", DIT)["proj_out.bias"],
                          released.read_component(REPO, DIT, ["proj_out.bias"])["proj_out.bias"] + np.float32(2))


def test_the_tools_ask_for_an_exported_base(tmp_path, capsys):
    checkpoint(tmp_path / "a", DIT)
    checkpoint(tmp_path / "b", DIT, begin=tmp_path / "a")
    assert convert.main(["--from", "mindglm", "--to", "hf", str(tmp_path / "b"), str(tmp_path / "out")]) == 2
    assert "export that one first and give --base" in capsys.readouterr().err
    assert convert.main(["--from", "mindglm", "--to", "hf", str(tmp_path / "b"), str(tmp_path / "out"), "--base",
                         str(REPO)]) == 0


def test_damage_and_circles_are_refused(tmp_path):
    checkpoint(tmp_path / "run", DIT)
    file = next((tmp_path / "run" / "checkpoint" / "iteration_00000005").glob("*-ema-*"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="-ema-.*is damaged"):
        values(tmp_path / "run", DIT)
    checkpoint(tmp_path / "round", DIT, begin=tmp_path / "round")
    with pytest.raises(UserError, match="began from itself"):
        start.base(tmp_path / "round")
