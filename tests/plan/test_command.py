"""`mindglm plan` from the command line: words, numbers, the page, mistakes; and how quickly it answers."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from mindglm.cli import main as cli
from mindglm.errors import exit_code
from mindglm.plan import hardware

ROOT = Path(__file__).resolve().parents[2]
AR, DIT = (str(ROOT / "recipes" / "glm_image" / name) for name in ("ar_9b_sft.yaml", "dit_7b_sft.yaml"))
NANO = str(ROOT / "recipes" / "nano" / "dit.yaml")
STAGED = ["parallel_config.data_parallel=1", "parallel_config.pipeline_stage=8", "parallel_config.micro_batch_num=32",
          "runner_config.gradient_accumulation_steps=1", "parallel_config.pipeline_chunks=1",
          "parallel_config.pipeline_schedule=1f1b", "runner_config.global_batch_size=64"]


def out(capsys, *arguments):
    assert cli.main(["plan", *arguments]) == 0
    return capsys.readouterr().out


def test_words(capsys):
    text = out(capsys, AR, *STAGED, "--size", "1024x1024", "--prompt-tokens", "100")
    for words in ("8 devices, 1 node(s) of Atlas 800T A2", "8,914,788,352 trained parameters", "prompts of 100 tokens",
                  "stage 7: layer", "planned and not measured", "MFU", "device-hours", "the step is bound by computing",
                  "assumed by us, not measured", "2.504 PFLOPS"):
        assert words in text, words
    rows = re.findall(r"^  (\d)((?: +\d+\.\d+)+)(?: \(update\))? +(\d+)$", text, re.M)
    assert [row[0] for row in rows] == list("01234567") and [int(row[2]) for row in rows] == [8, 7, 6, 5, 4, 3, 2, 1]
    for _, numbers, _ in rows:
        *parts, peak = map(float, numbers.split())
        assert len(parts) == 7 and sum(parts) == pytest.approx(peak, abs=0.05)


def test_numbers(capsys):
    told = json.loads(out(capsys, DIT, *STAGED, "--json", "--size", "512x512=3", "--size", "1024x768=1"))
    assert told["planned"] is True and told["parameters"] == 6_926_882_880 and len(told["memory"]) == 8
    assert [(sample["size"], sample["share"]) for sample in told["samples"]] == [("512x512", 0.75), ("1024x768", 0.25)]
    assert told["peak"] == max(rank["peak"] for rank in told["memory"])
    terms = told["step_seconds"]
    assert sum(terms[name] for name in ("compute", "bubble", "reduction", "optimizer", "average", "data")) == \
        pytest.approx(terms["total"])
    assert told["device_hours"] == pytest.approx(told["run_days"] * 24 * 8)


def test_nodes_and_machines(capsys, tmp_path):
    for arguments, devices, title in ((["--nodes", "4"], 32, "Atlas 800T A2"),
                                      (["--nodes", "2", "--hardware", "atlas900-a3"], 32, "910C"),
                                      (["--nodes", "4", "--hardware", "h100"], 32, "does not run there")):
        assert f"on {devices} devices" in (text := out(capsys, AR, *STAGED, *arguments)) and title in text
    slow = tmp_path / "slow.yaml"
    slow.write_text("base: atlas800t-a2\nmatmul_efficiency: 0.325\n")
    usual, halved = (json.loads(out(capsys, AR, *STAGED, "--json", *more)) for more in ([], ["--hardware", str(slow)]))
    assert 1.7 < halved["step_seconds"]["total"] / usual["step_seconds"]["total"] < 2
    assert halved["hardware"]["sources"][0] == ["matmul_efficiency", f"measured: {slow}"]


def test_a_recipe_without_ascend_is_planned_for_this_machine(capsys):
    text = out(capsys, NANO, "--size", "128x128")
    assert "this machine's CPU" in text and "1,334,976 trained parameters" in text and "MiB" in text


def test_a_schedule_that_the_trainer_refuses_is_planned(capsys):
    usual, zero = (out(capsys, AR, *STAGED, f"parallel_config.pipeline_schedule={kind}") for kind in ("1f1b", "zb_h1"))
    waits = [float(re.search(r"ranks wait for ([\d.]+)%", text)[1]) for text in (usual, zero)]
    assert waits[1] < waits[0]
    assert "zb_h1 is planned only" in zero and "planned only" not in usual


def test_measured_storage_changes_the_seconds_of_a_checkpoint(capsys, tmp_path):
    """The AR generator: 8,914,788,352 parameters, master and two moments in float32, written by one node at 2 GB/s."""
    usual = json.loads(out(capsys, AR, *STAGED, "--json"))
    assert usual["checkpoint_bytes"] == 8_914_788_352 * 12 and usual["layout"]["nodes"] == 1
    assert usual["checkpoint_seconds"] == pytest.approx(106_977_460_224 / 2e9)
    four = json.loads(out(capsys, AR, *STAGED, "--nodes", "4", "parallel_config.optimizer_shard=true", "--json"))
    assert four["checkpoint_seconds"] == pytest.approx(106_977_460_224 / 2e9 / 4)
    measured = tmp_path / "measured.yaml"
    measured.write_text("base: atlas800t-a2\nstorage_bandwidth: 0.5e+9\n")
    slow = json.loads(out(capsys, AR, *STAGED, "--hardware", str(measured), "--json"))
    assert slow["checkpoint_bytes"] == usual["checkpoint_bytes"]
    assert slow["checkpoint_seconds"] == pytest.approx(106_977_460_224 / 0.5e9)
    written = 4000 // 250
    assert (slow["run_days"] - usual["run_days"]) * 86400 == pytest.approx(written * 106_977_460_224 * (2 - 0.5) / 1e9)
    assert f"takes {106_977_460_224 / 0.5e9:.3f} s every 250 steps" in out(
        capsys, AR, *STAGED, "--hardware", str(measured))


@pytest.mark.parametrize("recipe, trainer", [("vae", "vae_reconstruction"), ("tokenizer", "vq_reconstruction"),
                                             ("glyph", "glyph_alignment")])
def test_other_trainers_get_one_message(recipe, trainer, capsys):
    for more in ([], ["--search"], ["--json"]):
        assert cli.main(["plan", str(ROOT / "recipes" / "nano" / f"{recipe}.yaml"), *more]) == 2
        printed, told = capsys.readouterr()
        assert not printed and told == (f"mindglm: trainer.type {trainer} is not planned: only ar_next_token and "
                                        "flow_matching train models that are large and cut into units\n")


def test_search(capsys):
    text = out(capsys, DIT, "--search", "--nodes", "2", "--size", "1024x1024")
    assert "on 16 devices" in text and text.count("interleaved") + text.count("1f1b") >= 5
    found = json.loads(out(capsys, DIT, "--search", "--nodes", "2", "--size", "1024x1024", "--json"))
    times = [plan["step_seconds"] for plan in found["best"]]
    assert times == sorted(times) and all(plan["peak"] <= hardware.ATLAS_A2.memory for plan in found["best"])
    planned = json.loads(out(capsys, DIT, "--size", "1024x1024", "--json", *found["best"][0]["keys"].split()))
    assert planned["step_seconds"]["total"] == pytest.approx(times[0]) and planned["fits"]
    assert "no layout fits" in out(capsys, AR, "--search", "parallel_config.data_parallel=1", *STAGED[1:],
                                   "parallel_config.pipeline_stage=1", "parallel_config.micro_batch_num=1")


def test_page(capsys, tmp_path):
    """One file; a bar for every unit of the schedule, seven parts of memory a stage, nothing fetched from elsewhere."""
    file = tmp_path / "plan.html"
    out(capsys, AR, *STAGED, "parallel_config.micro_batch_num=4", "--html", str(file))
    page = file.read_text()
    gantt, memory = (re.search(rf'aria-label="{label}">(.*?)</svg>', page, re.S)[1]
                     for label in ("schedule by rank", "memory by stage"))
    assert len(re.findall("<title>forward", gantt)) == len(re.findall("<title>backward", gantt)) == 8 * 4
    assert len(re.findall("<title>", memory)) == 8 * 7 and "64 GiB" in memory
    assert not re.search(r"(?:src|href)=|https?://(?!www\.w3)", page.split("<h2>In words</h2>")[0])
    out(capsys, AR, *STAGED, "parallel_config.micro_batch_num=64", "--html", str(file))
    assert "of the 64 micro-batches" in file.read_text()


@pytest.mark.parametrize("arguments, words", [
    ([AR, "--hardware", "a100"], "expected one of atlas800t-a2"),
    ([AR, *STAGED, "--nodes", "3", "--hardware", "cpu"], "expected a multiple of 8"),
    ([AR, *STAGED, "parallel_config.pipeline_stge=2"], "nearest"),
    ([AR, "--search", "--nodes", "513"], "up to 4096"),
    ([AR, "--nodes", "99999999999"], "does not divide over"),
    ([AR, "--size", "1024x1024=0"], "every share"),
    ([AR, "--html", "/nowhere/page.html"], "cannot be written")])
def test_mistakes(arguments, words, capsys):
    assert cli.main(["plan", *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("size", ["1000x1000", "1024", "32x1024", "1024x1024=x"])
def test_sizes_that_cannot_be(size, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["plan", AR, "--size", size])
    assert end.value.code == 2 and "argument --size" in capsys.readouterr().err


def test_next_keys_go_with_nodes(capsys):
    """Behind the recipe that the command was given, which states other copies and micro-batches than are planned."""
    before = json.loads(out(capsys, AR, *STAGED, "--nodes", "4", "--json"))
    assert before["next"] and before["layout"]["micro_batches"] == 8
    for knob in before["next"]:
        after = json.loads(out(capsys, AR, *STAGED, *knob["keys"].split(), "--nodes", "4", "--json"))
        assert after["peak"] == knob["peak"]
        assert after["step_seconds"]["total"] == pytest.approx(knob["step_seconds"], rel=0.03)


@pytest.mark.parametrize("index", ["{", "{}", "[]", '{"buckets": 5}', '{"buckets": [{"height": 64, "width": 64}]}',
                                   '{"height": "64", "width": 64}', '{"height": 33, "width": 64}'])
def test_a_dataset_that_is_damaged(index, capsys, tmp_path):
    file = tmp_path / "index.json"
    file.write_text(index)
    assert cli.main(["plan", NANO, f"train_dataset.dataset_dir={tmp_path}"]) == 2
    assert f"mindglm: {file}: expected what `mindglm prepare` writes" in capsys.readouterr().err
    file.write_text('{"height": 64, "width": 128}')
    assert "128x64" in out(capsys, NANO, f"train_dataset.dataset_dir={tmp_path}")


@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_reader_that_has_gone(buffered):
    """As `mindglm plan RECIPE | true`: no traceback, and how a program ends by SIGPIPE."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as gone:
        result = subprocess.run([sys.executable, "-m", "mindglm", "plan", NANO], cwd=ROOT, stdout=gone, text=True,
                                stderr=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": buffered})
    assert (result.returncode, result.stderr) == (141, "")


def test_another_broken_pipe_is_a_fault():
    def fail():
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        exit_code(fail)


def test_it_answers_within_a_second_and_without_mindspore():
    """Processor time of a whole command, interpreter included: a busy machine does not make it fail."""
    command = ("import sys; from mindglm.cli import main; code = main.main(['plan', *sys.argv[1:]]); "
               "assert not {'mindspore', 'mindformers'} & set(sys.modules); sys.exit(code)")
    for arguments in ([AR], [DIT, "--json"]):
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        result = subprocess.run([sys.executable, "-c", command, *arguments], cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 1
