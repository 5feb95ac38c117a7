"""inspect, diff and verify: what they print and how they exit."""

import json
import os
import re

import numpy as np
import pytest

from ckpt_tools import convert, diff, inspect, verify
from mindglm.checkpoint import released, tree
from mindglm.checkpoint.tensors import checksum
from tests.ckpt_tools.folders import copy_of_repo, rewrite
from tests.ckpt_tools.test_training_checkpoints import DIT, checkpoint
from tests.golden import REPO

VAE = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture
def sealed(tmp_path):
    assert convert.main(["--from", "hf", "--to", "mindglm", str(REPO), str(tmp_path / "m")]) == 0
    return tmp_path / "m"


def test_inspect_lists_every_tensor_with_its_checksum(capsys):
    assert inspect.main([str(REPO)]) == 0
    told = capsys.readouterr().out
    raw = released.read_component_raw(REPO, DIT)
    assert f"{DIT}: {len(raw)} tensors, {sum(a.size for a in raw.values()):,} values" in told
    assert f"crc32 {checksum(raw['proj_out.weight']):08x}" in told and "processor/tokenizer.json" in told
    assert told.count("crc32") == sum(len(released.component_header(REPO, name)) for name in released.WEIGHT_STEM)


def test_inspect_folds_equal_layers_and_prints_json(sealed, capsys):
    assert inspect.main([str(REPO / DIT), "--fold"]) == 0
    told = capsys.readouterr().out
    assert "{0..1}" in told and "crc32" not in told
    assert inspect.main([str(sealed), "--json"]) == 0
    captured = capsys.readouterr()
    content = json.loads(captured.out)
    raw = released.read_component_raw(REPO, "vae")
    assert content["groups"]["vae"]["encoder.conv_in.bias"] == {
        "dtype": "BF16", "shape": [8], "bytes": 16, "crc32": checksum(raw["encoder.conv_in.bias"])}
    assert "checksums" not in captured.err  # remembered by the folder: nothing was read


def test_inspect_opens_all_kinds(tmp_path, capsys):
    checkpoint(tmp_path / "run", DIT)
    for path, word in ((REPO / VAE, "file"), (tmp_path / "run", "training"), (REPO / DIT / "config.json", "structure"),
                       ("recipes/glm_image/dit_7b_sft.yaml", "443 tensors, 6,926,882,880 values"),
                       ("mindglm/assets/glm_image", "all: 1853 tensors, 17,664,886,627 values")):
        assert inspect.main([str(path), "--no-checksums"]) == 0
        assert word in capsys.readouterr().out
    for path in (tmp_path / "nothing", tmp_path, REPO / "model_index.json"):
        assert inspect.main([str(path)]) == 2
        assert str(path) in capsys.readouterr().err


def test_tree_joins_single_children_and_folds_numbered_ones():
    leaves = {f"a.{i}.{kind}": "x" if i < 3 else "y" for i in range(5) for kind in ("w", "b")} | {"c.d.e": "z"}
    assert [line.split() for line in tree.lines(leaves, fold=True)] == [
        ["a"], ["{0..2}"], ["w", "x"], ["b", "x"], ["{3..4}"], ["w", "y"], ["b", "y"], ["c.d.e", "z"]]
    assert len(tree.lines(leaves)) == 1 + 5 * 3 + 1


def test_diff_of_equal_and_different_folders(tmp_path, sealed, capsys):
    assert diff.main([str(REPO), str(sealed)]) == 0
    assert "0 differences" in capsys.readouterr().out
    other = copy_of_repo(tmp_path / "other")
    name = "decoder.conv_in.weight"

    def change(arrays):
        values = released.to_float32(arrays[name]).copy()
        values[1, 2, 0, 1] = 2.0
        arrays[name] = released.to_bfloat16(values)

    rewrite(other / VAE, change)
    (other / "scheduler" / "scheduler_config.json").write_text("{}")
    assert diff.main([str(REPO), str(other)]) == 1
    told = capsys.readouterr().out
    error = f"{2.0 - released.read_component(REPO, 'vae')[name][1, 2, 0, 1]:.3g}"
    assert f"vae: {name}: max |a-b| {error}" in told and "first at [1, 2, 0, 1]" in told and "1 of" in told
    assert "scheduler/scheduler_config.json: other content" in told and f"2 differences, largest error {error}" in told
    assert diff.main([str(REPO / "vae"), str(other / "vae"), "--tolerance", "4"]) == 0


def test_diff_names_what_one_side_lacks(tmp_path, capsys):
    other = copy_of_repo(tmp_path / "other")
    rewrite(other / VAE, lambda arrays: (arrays.pop("encoder.conv_in.bias"), arrays.update(x=np.zeros(2, np.uint16))))
    os.remove(other / "text_encoder" / "model.safetensors")
    assert diff.main([str(REPO), str(other)]) == 1
    told = capsys.readouterr().out
    assert f"text_encoder: only in {REPO}" in told and f"encoder.conv_in.bias: only in {REPO}" in told
    assert f"vae: x: only in {other}" in told
    assert diff.main([str(REPO), str(tmp_path / "none")]) == 2


def test_diff_sees_nan_and_dtype(tmp_path, capsys):
    other = copy_of_repo(tmp_path / "other")
    rewrite(other / VAE, lambda arrays: arrays["encoder.conv_in.bias"].fill(0x7FC0))
    assert diff.main([str(REPO / "vae"), str(other / "vae")]) == 1
    assert "max |a-b| inf" in capsys.readouterr().out
    assert diff.main([str(other / "vae"), str(other / "vae")]) == 0  # nan here and nan there is the same
    assert convert.main(["--from", "hf", "--to", "mindglm", str(REPO / "vae"), str(tmp_path / "wide"),
                         "--dtype", "float32"]) == 0
    capsys.readouterr()
    assert diff.main([str(REPO / "vae"), str(tmp_path / "wide")]) == 1
    assert "same values, dtypes BF16 and F32" in capsys.readouterr().out


def test_diff_of_a_training_checkpoint_with_its_export(tmp_path, capsys):
    checkpoint(tmp_path / "run", DIT)
    arguments = ["--from", "mindglm", "--to", "hf", str(tmp_path / "run"), str(tmp_path / "out"), "--dtype", "float32"]
    assert convert.main(arguments) == 0
    assert diff.main([str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    assert diff.main([str(tmp_path / "run"), str(tmp_path / "out"), "--weights", "live"]) == 1
    assert "largest error 1" in capsys.readouterr().out
    assert diff.main([str(tmp_path / "run"), str(tmp_path / "run")]) == 0
    assert "3" in capsys.readouterr().out


def test_verify_accepts_what_is_whole(tmp_path, sealed, capsys):
    checkpoint(tmp_path / "run", DIT)
    for path in (REPO, sealed, tmp_path / "run", REPO / VAE, REPO / DIT):
        assert verify.main([str(path)]) == 0
        assert "whole" in capsys.readouterr().out


def test_verify_lists_every_problem(tmp_path, sealed, capsys):
    def spoil(arrays):
        arrays["encoder.conv_in.bias"][0] = 0x7F80  # infinity
        arrays["encoder.conv_out.weird"] = arrays.pop("encoder.conv_out.bias")

    rewrite(sealed / VAE, spoil)
    index = sealed / DIT / "diffusion_pytorch_model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["metadata"]["total_size"] += 1
    index.write_text(json.dumps(content))
    config = json.loads((sealed / DIT / "config.json").read_text())
    config["text_embed_dim"] = 24
    (sealed / DIT / "config.json").write_text(json.dumps(config))
    (sealed / "added.txt").write_text("")
    assert verify.main([str(sealed)]) == 2
    told = capsys.readouterr().err
    for words in ("encoder.conv_in.bias is damaged", "1 values that are not finite", "missing: encoder.conv_out.bias",
                  "(nearest: encoder.conv_out.bias)", "total_size", "feature width 40, transformer expects 24",
                  "glyph_projector.net.0.proj.weight is [48, 40], expected [48, 24]", "added.txt was added",
                  "config.json was changed"):
        assert words in told, words


def test_verify_of_a_damaged_training_checkpoint(tmp_path, capsys):
    checkpoint(tmp_path / "run", DIT)
    path = next((tmp_path / "run" / "checkpoint" / "iteration_00000005").glob("*-opt-*"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert verify.main([str(tmp_path / "run")]) == 2
    assert re.search(r"-opt-.*safetensors: tensor 'adam_m.* is damaged", capsys.readouterr().err)
    assert verify.main([str(tmp_path / "run"), "--step", "3"]) == 0
    os.truncate(path, 100)
    assert verify.main([str(tmp_path / "run")]) == 2
    assert verify.main([str(tmp_path / "nowhere")]) == 2
