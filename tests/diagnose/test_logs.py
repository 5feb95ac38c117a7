"""Reading logs: long ones, progress bars, chained errors, folders of several starts and nodes."""

import os

import pytest

from mindglm.cli import main as cli
from mindglm.diagnose import logs, triage
from mindglm.errors import UserError

ERROR = 'Traceback (most recent call last):\n  File "a.py", line 2, in g\nValueError: boom\n'


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.log").write_text(text)
    return folder


def test_a_long_log_is_read_at_both_ends_with_the_right_line_numbers(tmp_path):
    lines = [f"step {i}: loss 1.0" for i in range(200_000)]
    folder = write(tmp_path, worker_0="\n".join(["mindglm: rank 0 of 1 is process 77 on x", *lines]) + "\n" + ERROR)
    job = logs.read(folder)
    assert job.workers[0].pid == 77 and len(job.workers[0].lines) < 100_000
    verdict = triage.of_folder(folder)
    assert verdict.evidence[0].line == 200_004 and verdict.evidence[0].text == "ValueError: boom"


def test_an_error_in_the_middle_of_a_long_log_is_seen(tmp_path):
    """Retries, a server that hangs in its exit, or millions of warnings can follow it."""
    noise = [f"2026-11-22 10:00:01 - retry {i} of the connection" for i in range(60_000)]
    log = "\n".join(["mindglm: rank 0 of 1 is process 77 on x", *noise[:30_000], ERROR.rstrip(), *noise[30_000:]])
    verdict = triage.of_folder(write(tmp_path, worker_0=log))
    assert (verdict.cause, verdict.summary) == ("exception", "failed first: ValueError: boom (a.py:2 in g)")
    assert (verdict.evidence[0].line, verdict.evidence[0].text) == (30_004, "ValueError: boom")
    words = "[ERROR] X(1,7f,python):2026-11-22-18:32:27.090.684 [a.cc:1] f] Memory not enough"
    verdict = triage.of_folder(write(tmp_path, worker_0=log.replace(ERROR.rstrip(), words)))
    assert (verdict.cause, verdict.evidence[0].line, verdict.evidence[0].text) == ("device_memory", 30_002, words)


def test_lines_between_the_kept_ones_count(tmp_path):
    """What a process went on after for thousands of lines is not what ended it, though few of these are kept."""
    noise = "\n".join(f"retry {i} of the connection" for i in range(60_000))
    folder = write(tmp_path, worker_0=f"{noise}\nPermission denied for cache, ignored\n{noise}\n{ERROR}")
    verdict = triage.of_folder(folder)
    assert (verdict.cause, verdict.evidence[0].line) == ("exception", 120_004)


def test_a_line_of_a_megabyte_takes_no_time(tmp_path):
    import time

    write(tmp_path, worker_0="Failed to send " * 60_000, worker_1="x\n" + "Failed to send " * 200_000)
    start = time.process_time()
    triage.of_folder(tmp_path)
    assert time.process_time() - start < 3  # about 0.1 s alone


def test_a_log_that_cannot_be_read_is_a_mistake(tmp_path, capsys):
    """Even root cannot read this one; a missing right to read a file or a folder comes the same way."""
    write(tmp_path, worker_1=ERROR)
    (tmp_path / "worker_0.log").symlink_to("/proc/self/mem")
    assert cli.main(["triage", str(tmp_path)]) == 2
    assert "worker_0.log: Input/output error; the log that cannot be read may be" in capsys.readouterr().err


def test_what_a_progress_bar_overwrote_does_not_count(tmp_path):
    folder = write(tmp_path, worker_0="loss: 1\rRecv failed\rloss: 2\n")
    assert logs.read(folder).workers[0].lines[0] == "loss: 2"
    assert triage.of_folder(folder).cause == "unknown"


@pytest.mark.parametrize("line, seconds", [
    ("[ERROR] X(1,7f,python):2026-11-22-18:32:27.090.684 [a.cc:1] f] x", 1795372347.090684),
    ("2026-11-22 18:32:27,090 - mindformers - INFO - x", 1795372347.09),
    ("EI0006: [PID: 7] 2026-11-22-18:32:27.090.684 Getting", 1795372347.090684),
    ("no time at all", None),
    ("2026-13-45-99:99:99", None),
])
def test_times_of_lines(line, seconds):
    told = logs.line_time(line)
    assert told is None if seconds is None else told == pytest.approx(seconds, abs=1e-4)


def test_errors_that_python_ignores_have_ended_nothing(tmp_path):
    """MindSpore's Cells leave such lines when the interpreter ends."""
    folder = write(tmp_path, worker_0=f"step 9\nException ignored in: <function Cell.__del__ at 0x7f>\n{ERROR}")
    assert triage.of_folder(folder).cause == "unknown"


def test_logs_of_earlier_starts_are_left_out_unless_asked_for(tmp_path):
    write(tmp_path / "attempt_0", worker_0="", worker_1=ERROR)
    write(tmp_path, worker_0="step 1", worker_1="step 1", scheduler="")
    assert triage.of_folder(tmp_path).cause == "unknown"
    assert triage.of_folder(tmp_path / "attempt_0").rank == 1


def test_of_two_logs_of_a_rank_the_newer_counts(tmp_path):
    old, new = write(tmp_path / "old", worker_0=ERROR), write(tmp_path / "new", worker_0="step 1")
    for folder, when in ((old, 1000), (new, 2000)):
        os.utime(folder / "worker_0.log", (when, when))
    assert triage.of_folder(tmp_path).cause == "unknown"
    os.utime(old / "worker_0.log", (3000, 3000))
    assert triage.of_folder(tmp_path).cause == "exception"


def test_a_folder_without_logs_is_a_mistake_and_says_what_is_expected(tmp_path, capsys):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="worker_"):
            triage.of_folder(folder)
    assert cli.main(["triage", str(tmp_path)]) == 2
    assert "output/msrun_log" in capsys.readouterr().err


@pytest.mark.parametrize("how, cause, told", [
    ("killed by SIGSEGV", "crash", "crashed (SIGSEGV)"), ("killed by SIGILL", "crash", "crashed (SIGILL)"),
    ("killed by SIGFPE", "crash", "crashed (SIGFPE)"), ("killed by SIGSYS", "crash", "crashed (SIGSYS)"),
    ("exit code 139", "crash", "crashed (SIGSEGV)"), ("killed by SIGTERM", "stopped", "was told to stop"),
    ("exit code 130", "stopped", "was told to stop"), ("exit code 137", "killed", "was killed (SIGKILL)"),
    ("killed by SIGKILL; often the kernel's", "killed", "was killed (SIGKILL)"),
    ("killed by SIGUSR1", "killed", "was killed (SIGUSR1)"),
    ("killed by signal 40", "killed", "was killed (signal 40)"),
    ("killed by ", "killed", "was killed (SIGKILL)"), ("exit code 3", "ended_early", "ended with exit code 3"),
    ("exit code 255", "ended_early", "ended with exit code 255"),
])
def test_how_a_process_ended(how, cause, told, tmp_path):
    write(tmp_path, worker_0="step 1: loss 2\n", launcher=f"mindglm: rank 0 failed first ({how}); all others ended")
    verdict = triage.of_folder(tmp_path)
    assert verdict.cause == cause and verdict.summary.startswith(told)


def test_the_command_tells_rank_cause_place_and_next_step(tmp_path, capsys):
    write(tmp_path, worker_0="TransportError: rank 0: all_reduce of x with rank 1 failed after 3.0 s", worker_1=ERROR)
    assert cli.main(["triage", str(tmp_path)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "rank 1 failed first: ValueError: boom (a.py:2 in g)" and told[1].endswith("[exception]")
    assert told[2] == f"  {tmp_path}/worker_1.log:3: ValueError: boom"
    assert told[3].startswith("next: 1. ") and told[-1].startswith("rank 0: a collective or a transfer waited")
    assert cli.main(["triage", "--json", str(tmp_path)]) == 0
    assert '"rank": 1' in capsys.readouterr().out


def test_4096_ranks_are_read_in_a_second(tmp_path):
    import time

    waiting = "TransportError: rank 0: all_reduce of x with rank 1234 failed after 3.0 s\n"
    write(tmp_path, **{f"worker_{rank}": "step 1\n" if rank == 1234 else waiting for rank in range(4096)})
    start = time.process_time()
    verdict = triage.of_folder(tmp_path)
    assert (verdict.rank, verdict.cause) == (1234, "hangs") and len(verdict.others) == 4095
    assert time.process_time() - start < 5  # about 1 s alone; machines that run tests are slower
