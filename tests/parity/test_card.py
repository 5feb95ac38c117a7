"""The precision card as a command: exit codes, the first departing tensor by name, json, half precision."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from ckpt_tools import precision_card
from mindglm.checkpoint.tensors import TensorFile, write_tensors
from mindglm.evaluate.precision.compare import (
    CHOICE, EXACT, FORWARD, GRADIENT, NOT_JUDGED, OK, OVER, Found, judge, rel_error,
)
from tests.golden import BASE, REPO

FIXTURES = BASE / "fixtures"


def run(*arguments) -> int:
    return precision_card.main([str(a) for a in arguments])


def altered(tmp_path, file: str, tensor: str):
    """A copy of the model folder in which one value of one tensor is another."""
    repo = tmp_path / "repo"
    shutil.copytree(REPO, repo)
    stored = TensorFile(repo / file)
    tensors = {name: np.array(stored.raw(name)) for name in stored.names}
    tensors[tensor].reshape(-1)[0] ^= 0x0100  # bfloat16 bits: twice or half the value
    write_tensors(repo / file, tensors, {"format": "pt"})
    return repo


def test_all_within_tolerance(tmp_path, capsys):
    out = tmp_path / "card.json"
    assert run(REPO, FIXTURES, "--family", "scheduler", "--family", "vae", "--json", out) == 0
    text = capsys.readouterr().out
    assert "vae.enc.down0" in text and "all within tolerance" in text
    card = json.loads(out.read_text())
    assert card["passed"] and card["first_departure"] is None and card["dtype"] == "fp32" and card["device"] == "CPU"
    row = next(row for row in card["rows"] if row["name"] == "decoded")
    assert row["family"] == "vae" and 0 <= row["error"] <= row["tolerance"] == 1e-5 and row["verdict"] == "ok"


def test_first_departing_tensor_is_named(tmp_path, capsys):
    repo = altered(tmp_path, "vae/diffusion_pytorch_model.safetensors", "encoder.down_blocks.2.resnets.0.conv1.bias")
    out = tmp_path / "card.json"
    assert run(repo, FIXTURES, "--family", "vae", "--json", out) == 1
    assert "FIRST DEPARTURE in the order of computation: vae.enc.down2" in capsys.readouterr().out
    card = json.loads(out.read_text())
    assert card["first_departure"]["name"] == "enc.down2" and not card["passed"]
    assert [row["verdict"] for row in card["rows"] if row["name"] in ("enc.down1", "enc.down2")] == ["ok", "OVER"]


def test_a_family_that_cannot_run_is_a_departure_and_the_next_one_follows(capsys, monkeypatch):
    from mindglm.models.dit_decoder import model

    def broken(*arguments):
        raise RuntimeError("no kernel for it")

    monkeypatch.setattr(model, "modulate", broken)
    assert run(REPO, FIXTURES, "--family", "dit_t2i", "--family", "vae") == 1
    seen = capsys.readouterr()
    assert "dit_t2i.(after rope_sin)" in seen.out and "FAILED  (RuntimeError: no kernel for it)" in seen.out
    assert "vae.decoded" in seen.out and "Traceback" in seen.err


@pytest.mark.parametrize("arguments, message", [
    (("nowhere", FIXTURES), "nowhere: no such folder"),
    ((FIXTURES, FIXTURES), "no model_index.json"),
    ((REPO, "nowhere"), "fixtures nowhere: no such folder"),
    ((REPO, BASE), "did you mean"),
    ((REPO, FIXTURES, "--family", "cat"), "family cat"),
    ((REPO, FIXTURES, "--json", "nowhere/card.json"), "its folder does not exist"),
    ((REPO, FIXTURES, "--device", "Ascend"), "--device Ascend"),
])
def test_bad_input(arguments, message, capsys):
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err


def test_bad_options_end_with_2(capsys):
    with pytest.raises(SystemExit) as end:
        run(REPO, FIXTURES, "--dtype", "int4")
    assert end.value.code == 2 and "int4" in capsys.readouterr().err


def test_damaged_and_foreign_fixtures(tmp_path, capsys):
    for name, content in (("vae", b"\x10" * 40), ("scheduler", (FIXTURES / "sampling.safetensors").read_bytes())):
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"{name}.safetensors").write_bytes(content)
        assert run(REPO, folder) == 2
        assert str(folder) in capsys.readouterr().err
    (tmp_path / "vae" / "vae.safetensors").rename(tmp_path / "vae" / "cat.safetensors")
    assert run(REPO, tmp_path / "vae") == 2
    assert "no family that this card knows" in capsys.readouterr().err


def test_float16(capsys):
    assert run(REPO, FIXTURES, "--dtype", "fp16", "--family", "ar_t2i", "--family", "train_dit") == 0
    text = capsys.readouterr().out
    assert "fp16 on CPU" in text and "not judged" in text and "train_dit.t2i.grad.proj_out.weight" in text


def test_bfloat16_on_a_machine_without_its_kernels():
    """In a process of its own: the form of the operations is chosen when they are first imported."""
    command = [sys.executable, "-m", "ckpt_tools.precision_card", REPO, FIXTURES, "--dtype", "bf16",
               *("--family ar_t2i --family dit_t2i --family vision_vq".split())]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env={**os.environ, "GLOG_v": "4"})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "ar_t2i.bf16.prefill.logits" in done.stdout and "dit_t2i.bf16.out.cond" in done.stdout


def test_judgement():
    reference = np.array([2.0, -4.0, -np.inf])
    assert rel_error(reference, reference) == 0
    assert rel_error(np.array([2.0, -4.0, 0.0]), reference) == np.inf
    assert rel_error(np.array([2.0, -5.0, -np.inf]), reference) == 0.25
    verdict = {}
    for kind in (FORWARD, GRADIENT):
        found = Found("x", np.array([1.0, 1.0 + 5e-5]), kind)
        verdict[kind] = judge("f", found, np.ones(2), "fp32").verdict
    assert verdict == {FORWARD: OVER, GRADIENT: OK}
    wrong = Found("x", np.array([1, 3]), CHOICE)
    assert judge("f", wrong, np.array([1, 2]), "fp32").verdict == OVER
    assert judge("f", wrong, np.array([1, 2]), "bf16").verdict == NOT_JUDGED
    assert judge("f", Found("x", ["a"], EXACT), ["b"], "bf16").verdict == OVER
    assert judge("f", Found("x", np.array([np.nan])), np.ones(1), "bf16").verdict == OVER
    assert "shape" in judge("f", Found("x", np.ones(3)), np.ones(2), "fp32").note
    padded = Found("x", np.array([[9.0], [1.0]]), where=np.array([False, True]))
    assert judge("f", padded, np.ones((2, 1)), "fp32").verdict == OK
