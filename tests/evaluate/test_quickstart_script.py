"""launch/quickstart.sh with stand-ins for its commands: what is skipped, redone, shown on failure, and stopped."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.launch.stand_ins import MSRUN

ROOT = pathlib.Path(__file__).resolve().parents[2]

STAND_INS = {
    "python": """case "$*" in
        *openmoji*) mkdir -p "$OUT/images"; touch "$OUT/images/captions.jsonl" ;;
        *quickstart_page*) touch "$OUT/index.html" ;;
        esac""",
    "mindglm": 'mkdir -p "$OUT/dataset"; touch "$OUT/dataset/index.json"',
    "msrun": 'exec "${0%/*}/spawn" "$@"',
}

# As the real one: a log, and the model as its product. FAIL makes rank 1 die, SLOW makes the training long.
WORKER = """if [ -n "${MS_ROLE:-}" ]; then
    if [ $MS_ROLE = MS_SCHED ]; then exit 0; fi
    for a in "$@"; do case "$a" in output_dir=*) out="${a#*=}" ;; esac; done
    echo "mindglm: loading"
    if [ -n "${FAIL:-}" ]; then
        if [ $RANK_ID = 0 ]; then sleep 60; fi
        printf 'mindglm: rank 1 failed\\nTraceback\\nValueError: boom\\n'
        exit 1
    fi
    if [ -n "${SLOW:-}" ]; then touch "$OUT/slow"; sleep 60; fi
    mkdir -p "$out/model"; touch "$out/model/model_index.json"
    exit 0
fi
"""


@pytest.fixture
def call(tmp_path):
    """Runs the script in a stand-in repository: call(output=..., **environment) -> (process, names of commands run)."""
    repo, bin_dir = tmp_path / "repo", tmp_path / "bin"
    for folder in ("launch", "recipes/nano", "mindglm/assets/nano/vae"):
        (repo / folder).mkdir(parents=True)
    for name in ("quickstart.sh", "supervise.sh", "supervise.py", "processes.py"):
        shutil.copy(ROOT / "launch" / name, repo / "launch")
    (repo / "launch" / "venv.sh").write_text('ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"\ncd "$ROOT"\n'
                                             f'PYTHON={sys.executable}\nexport PYTHON ROOT PATH="{bin_dir}:$PATH"\n')
    for name in ("recipes/nano/ar.yaml", "recipes/nano/dit.yaml", "mindglm/assets/nano/vae/v.safetensors"):
        (repo / name).write_text("one")
    bin_dir.mkdir()
    for name, body in STAND_INS.items():
        noted = f'echo "{name} $*" >> "$OUT/../log"'
        (bin_dir / name).write_text(f"#!/usr/bin/env bash\n{WORKER if name == 'python' else ''}{noted}\n{body}\n")
        (bin_dir / name).chmod(0o755)
    (bin_dir / "spawn").write_text(MSRUN)
    (bin_dir / "spawn").chmod(0o755)
    out = tmp_path / "elsewhere" / "out"
    out.parent.mkdir()

    def start(**environment):
        return subprocess.Popen(["bash", str(repo / "launch" / "quickstart.sh"), "out"], cwd=out.parent, text=True,
                                env={**os.environ, "OUT": str(out), **environment}, start_new_session=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def run(**environment):
        log = out.parent / "log"
        log.write_text("")
        process = start(**environment)
        text, _ = process.communicate(timeout=60)
        return process.returncode, text, [line.split()[0] for line in log.read_text().splitlines()]

    run.repo, run.out, run.start = repo, out, start
    return run


def test_done_steps_are_skipped_and_changed_ones_made_anew(call):
    code, text, commands = call()
    assert code == 0, text
    assert commands == ["python", "mindglm", "msrun", "msrun", "python"]
    assert (call.out / "steps.tsv").read_text().count("launch/train_node.sh") == 2
    code, text, commands = call()
    assert (code, commands) == (0, []) and text.count(" s), skipped") == 5
    (call.repo / "recipes/nano/dit.yaml").write_text("two")
    (call.out / "dit" / "old").touch()
    code, text, commands = call()
    assert commands == ["msrun", "python"] and "made anew" in text  # the page shows the new model
    assert not (call.out / "dit" / "old").exists()
    shutil.rmtree(call.out / "dataset")
    assert call()[2] == ["mindglm"]


def test_a_failing_worker_is_shown_and_the_next_call_goes_on(call):
    code, text, commands = call(FAIL="1")
    assert code == 1 and commands == ["python", "mindglm", "msrun"]
    assert "worker_1.log" in text and "ValueError: boom" in text and "step 'ar' failed" in text
    code, text, commands = call()
    assert code == 0 and commands == ["msrun", "msrun", "python"] and "made anew" not in text


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_everything_that_was_started(call, number, code):
    process = call.start(SLOW="1")
    deadline = time.monotonic() + 30
    while not (call.out / "slow").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(number)
    text, _ = process.communicate(timeout=30)  # returns only when no process holds the script's output any more
    assert process.returncode == code and "goes on from here" in text
    assert call()[2] == ["msrun", "msrun", "python"]


def test_two_calls_do_not_share_an_output(call):
    (call.out / "steps").mkdir(parents=True)
    holder = subprocess.Popen(["flock", str(call.out / "steps" / "lock"), "sleep", "30"], start_new_session=True)
    try:
        time.sleep(0.3)
        code, text, commands = call()
    finally:
        os.killpg(holder.pid, signal.SIGTERM)
        holder.wait()
    assert (code, commands) == (2, []) and "another quickstart" in text
