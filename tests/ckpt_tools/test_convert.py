"""convert, released folder <-> mindglm folder: the same bytes back, casts, refusals in one message, no half folder."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from ckpt_tools import convert
from mindglm.checkpoint import conversion, released, seal
from mindglm.checkpoint.tensors import TensorFile, to_float32
from mindglm.errors import UserError
from tests.ckpt_tools.folders import contents, copy_of_repo, rewrite, rewrite_index
from tests.golden import REPO

HF = ["--from", "hf", "--to", "mindglm"]
BACK = ["--from", "mindglm", "--to", "hf"]
AR, DIT = "vision_language_encoder", "transformer"


def run(*arguments):
    return convert.main([str(argument) for argument in arguments])


@pytest.fixture
def sealed(tmp_path):
    assert run(*HF, REPO, tmp_path / "m") == 0
    return tmp_path / "m"


def test_there_and_back_gives_every_byte(tmp_path, sealed):
    """Weights, indices, json files, tokenizer: all files, none more."""
    assert run(*BACK, sealed, tmp_path / "h") == 0
    assert contents(tmp_path / "h") == contents(REPO)
    ours = contents(sealed)
    assert set(ours) - set(contents(REPO)) == {seal.NAME}
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["h", "m"]  # no staging folder is left


def test_bytes_come_back_whoever_wrote_the_file(tmp_path):
    """A file that is not laid out as we would: other order, other padding. It must not be rewritten."""
    repo = copy_of_repo(tmp_path / "repo")
    path = repo / "vae" / "diffusion_pytorch_model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(dict(reversed(json.loads(data[8:8 + length]).items()))).encode() + b"   "
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length:])
    conversion.convert(repo, tmp_path / "m", "mindglm")
    conversion.convert(tmp_path / "m", tmp_path / "h", "hf")
    assert contents(tmp_path / "h") == contents(repo)


def test_a_cast_is_undone_by_the_cast_back(tmp_path, capsys):
    assert run(*HF, REPO, tmp_path / "wide", "--dtype", "float32") == 0
    header = released.component_header(tmp_path / "wide", AR)
    assert {code for code, _ in header.values()} == {"F32"}
    assert released.component_config(tmp_path / "wide", AR)["dtype"] == "float32"
    index = json.loads((tmp_path / "wide" / AR / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * sum(int(np.prod(shape)) for _, shape in header.values())
    narrow, wide = (released.read_component_raw(root, AR) for root in (REPO, tmp_path / "wide"))
    assert all(np.array_equal(to_float32(narrow[name]), wide[name]) for name in narrow)
    assert run(*BACK, tmp_path / "wide", tmp_path / "back", "--dtype", "released") == 0
    assert contents(tmp_path / "back") == contents(REPO)


def test_bfloat16_is_rounded_to_nearest_even(tmp_path):
    repo = copy_of_repo(tmp_path / "repo")
    conversion.convert(repo, tmp_path / "m", "mindglm", dtype="bfloat16")
    wide, narrow = (released.read_component_raw(root, "text_encoder") for root in (repo, tmp_path / "m"))
    name = "shared.weight"
    assert narrow[name].dtype == np.uint16
    error = np.abs(to_float32(narrow[name]) - wide[name])
    assert (error <= np.abs(wide[name]) * 2.0**-8).all()
    json_text = (tmp_path / "m" / "text_encoder" / "config.json").read_text()
    assert json_text == (REPO / "text_encoder" / "config.json").read_text().replace('"float32"', '"bfloat16"')


def test_float16_is_refused_where_it_overflows(tmp_path, capsys):
    repo = copy_of_repo(tmp_path / "repo")
    rewrite(repo / "vae" / "diffusion_pytorch_model.safetensors",
            lambda arrays: arrays["decoder.conv_in.bias"].fill(0x4800))
    assert run(*HF, repo, tmp_path / "m", "--dtype", "float16") == 2  # 0x4800 is 131072 in bfloat16
    assert "131072 do not fit float16" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["repo"]


def test_one_message_lists_all_that_does_not_fit_and_nothing_is_written(tmp_path, capsys):
    repo = copy_of_repo(tmp_path / "repo")
    index = repo / DIT / "diffusion_pytorch_model.safetensors.index.json"
    files = json.loads(index.read_text())["weight_map"]
    misspelt, right = "transformer_blocks.1.attn1.to_q.wieght", "transformer_blocks.1.attn1.to_q.weight"

    def spoil(arrays):
        if right in arrays:
            arrays[misspelt] = arrays.pop(right)
        if "proj_out.bias" in arrays:
            arrays["proj_out.bias"] = arrays["proj_out.bias"][:-1]

    for name in sorted(set(files.values())):
        rewrite(repo / DIT / name, spoil)
    rewrite_index(index, lambda places: places.update({misspelt: places.pop(right)}))
    rewrite(repo / "vae" / "diffusion_pytorch_model.safetensors", lambda arrays: arrays.pop("encoder.conv_in.bias"))
    assert run(*HF, repo, tmp_path / "m") == 2
    told = capsys.readouterr().err
    assert "1 missing: transformer_blocks.1.attn1.to_q.weight" in told
    assert f"1 unexpected: {misspelt} (nearest: {right})" in told
    assert "1 of another shape: proj_out.bias is [15], expected [16]" in told
    assert "1 missing: encoder.conv_in.bias" in told and "Traceback" not in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["repo"]


def test_index_and_files_must_agree(tmp_path, capsys):
    repo = copy_of_repo(tmp_path / "repo")
    shards = sorted((repo / AR).glob("*.safetensors"))
    rewrite_index(repo / AR / "model.safetensors.index.json",
                  lambda places: places.update({"lm_head.weight": next(s.name for s in shards
                                                                       if s.name != places["lm_head.weight"])}))
    (repo / DIT / "diffusion_pytorch_model.safetensors").write_bytes(
        (repo / "vae" / "diffusion_pytorch_model.safetensors").read_bytes())
    assert run(*HF, repo, tmp_path / "m") == 2
    told = capsys.readouterr().err
    assert "lm_head.weight" in told and "does not name diffusion_pytorch_model.safetensors" in told
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("damage, message", [
    (lambda repo: (repo / "vae" / "config.json").unlink(), "config.json: no such file"),
    (lambda repo: (repo / "vae" / "config.json").write_text("{"), "not a json file"),
    (lambda repo: (repo / DIT / "config.json").write_text('{"num_layers": "x"}'), "missing"),
    (lambda repo: next((repo / DIT).glob("*2-of-00002*")).unlink(), "is missing, diffusion_pytorch_model"),
    (lambda repo: os.truncate(next((repo / DIT).glob("*2-of-00002*")), 999), "not a whole safetensors file"),
], ids=["no config", "broken config", "foreign config", "lost shard", "cut shard"])
def test_bad_input_ends_with_code_2_and_leaves_nothing(tmp_path, capsys, damage, message):
    repo = copy_of_repo(tmp_path / "repo")
    damage(repo)
    assert run(*HF, repo, tmp_path / "m") == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["repo"]


def test_a_damaged_mindglm_folder_is_refused_naming_the_tensor(tmp_path, sealed, capsys):
    path = sealed / "vae" / "diffusion_pytorch_model.safetensors"
    file = TensorFile(path)
    last = file.by_place[-1]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for more in ([], ["--dtype", "float32"]):  # copied, and rewritten
        assert run(*BACK, sealed, tmp_path / "h", *more) == 2
        assert last in (told := capsys.readouterr().err) and "damaged" in told
        assert not (tmp_path / "h").exists()


def test_changed_lost_and_added_files_of_a_mindglm_folder_are_named(tmp_path, sealed, capsys):
    (sealed / "scheduler" / "scheduler_config.json").write_text("{}")
    (sealed / "processor" / "chat_template.jinja").unlink()
    (sealed / "notes.txt").write_text("mine")
    assert run(*BACK, sealed, tmp_path / "h") == 2
    told = capsys.readouterr().err
    assert "scheduler_config.json was changed" in told
    assert "chat_template.jinja is missing" in told and "notes.txt was added" in told
    assert run(*HF, sealed, tmp_path / "again") == 0  # a change that was meant gets a new list
    assert run(*BACK, tmp_path / "again", tmp_path / "h") == 0 and (tmp_path / "h" / "notes.txt").exists()


def test_one_component_alone_is_converted(tmp_path):
    for source in (REPO / DIT, copy_of_repo(tmp_path / "repo") / AR):
        target = tmp_path / source.name
        conversion.convert(source, target / "m", "mindglm")
        conversion.convert(target / "m", target / "h", "hf")
        assert contents(target / "h") == contents(source)


def test_alias_of_the_glyph_embedding(tmp_path):
    """Older files hold it twice, or only under the other name; an alias with other values is refused."""
    path = "text_encoder/model.safetensors"
    alias, name = "encoder.embed_tokens.weight", "shared.weight"
    twice = copy_of_repo(tmp_path / "twice")
    rewrite(twice / path, lambda arrays: arrays.update({alias: arrays[name]}))
    conversion.convert(twice, tmp_path / "m", "mindglm")
    conversion.convert(tmp_path / "m", tmp_path / "h", "hf")
    assert contents(tmp_path / "h") == contents(twice)
    other = copy_of_repo(tmp_path / "other")
    rewrite(other / path, lambda arrays: arrays.update({alias: arrays.pop(name)}))
    conversion.convert(other, tmp_path / "m2", "mindglm")
    assert name in TensorFile(tmp_path / "m2" / path) and alias not in TensorFile(tmp_path / "m2" / path)
    conversion.convert(tmp_path / "m2", tmp_path / "h2", "hf")
    assert contents(tmp_path / "h2") == contents(REPO)
    rewrite(twice / path, lambda arrays: arrays.update({alias: arrays[name] + 1}))
    with pytest.raises(UserError, match="must equal shared.weight"):
        conversion.convert(twice, tmp_path / "m3", "mindglm")


def test_places_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    (tmp_path / "file").write_text("")
    for target, message in (("full", "not empty"), ("file", "is a file")):
        assert run(*HF, REPO, tmp_path / target) == 2
        assert message in capsys.readouterr().err
    assert run(*HF, tmp_path, tmp_path / "inside") == 2
    assert "neither inside the other" in capsys.readouterr().err
    assert run(*HF, REPO, tmp_path / "full", "--overwrite") == 0
    assert not (tmp_path / "full" / "x").exists() and (tmp_path / "full" / seal.NAME).exists()
    (tmp_path / "empty").mkdir()
    assert run(*HF, REPO, tmp_path / "empty") == 0


def test_no_room_is_said_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    assert run(*HF, REPO, tmp_path / "m") == 2
    assert "GB are free" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_options_that_mean_nothing_are_mistakes(tmp_path, capsys):
    assert run(*HF, REPO, tmp_path / "m", "--base", REPO) == 2
    assert "--base" in capsys.readouterr().err
    assert run("--from", "hf", "--to", "hf", REPO, tmp_path / "m") == 2
    assert "two different kinds" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        run("--from", "torch", "--to", "hf", REPO, tmp_path / "m")
    assert end.value.code == 2


SLOWLY = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born ignoring it
from mindglm.checkpoint import writer
plain = writer.FolderWriter.copy_file
def slow(self, *arguments):
    plain(self, *arguments); print("writing", flush=True); time.sleep(60)
writer.FolderWriter.copy_file = slow
from ckpt_tools import convert
sys.exit(convert.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_stopped_conversion_leaves_no_half_folder(tmp_path, number, code):
    """Killed while it copies the last files. SIGKILL leaves a hidden folder, which the next conversion removes."""
    target = tmp_path / "m"
    process = subprocess.Popen([sys.executable, "-c", SLOWLY, *HF, str(REPO), str(target)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"writing\n"
    time.sleep(0.1)
    assert not target.exists()
    process.send_signal(number)
    assert process.wait(30) == code
    process.stdout.close()
    left = [path.name for path in tmp_path.iterdir()]
    assert left == ([f".m.{process.pid}.tmp"] if number == signal.SIGKILL else [])
    conversion.convert(REPO, target, "mindglm")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
