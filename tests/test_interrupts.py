"""Ctrl-C in a process that computes with MindSpore."""

import os
import signal
import subprocess
import sys
import time

import pytest

from mindglm import recipe
from tests.parallel.job import ROOT
from tests.train import test_run

PROLOGUE = """
import os, signal, sys, threading, time
from mindglm import interrupts
from mindglm.errors import exit_code
signal.signal(signal.SIGINT, signal.default_int_handler)  # children of background jobs are born ignoring it
def ready():
    print("ready", flush=True)
def command():
"""
EPILOGUE = """
with interrupts.kept():
    code = exit_code(command)
print("left", signal.pthread_sigmask(signal.SIG_BLOCK, ()))
sys.exit(code)
"""

COMPILED = """
    import mindspore as ms
    from mindspore import Tensor, mint
    ms.runtime.launch_blocking()
    @ms.jit
    def graph(x):
        return mint.matmul(x, x)
    x = mint.ones((200, 200))
    graph(x).asnumpy()
    waits = next(str(thread.native_id) for thread in threading.enumerate() if thread.name == "interrupts")
    for task in os.listdir("/proc/self/task"):
        status = open(f"/proc/self/task/{task}/status").read()
        blocked = int(status.split("SigBlk:")[1].split()[0], 16) >> signal.SIGINT - 1 & 1
        assert blocked or task == waits, f"thread {task} hears SIGINT"
    ready()
    while True:
        graph(x).asnumpy()
"""
LOCKED = """
    lock = threading.Lock()
    lock.acquire()
    ready()
    lock.acquire()
"""
STUCK = """
    import hashlib
    ready()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10 ** 9)  # minutes in C that no signal cuts short
"""

IMPORTING = """
import importlib.abc, os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)

class Interrupting(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.5)
            except KeyboardInterrupt:
                if not {swallowed}:
                    raise

sys.meta_path.insert(0, Interrupting())
from mindglm.cli.main import main
sys.exit(main())
"""


def run(folder, body: str, interruptions: int = 1):
    """The exit code and output of a process that gets SIGINT when it has said that it is ready."""
    script = folder / "script.py"  # MindSpore compiles what it can read
    script.write_text(PROLOGUE + body + EPILOGUE)
    process = subprocess.Popen([sys.executable, script], env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        for _ in range(interruptions):
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
        told, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, told, errors


@pytest.mark.parametrize("body", [COMPILED, LOCKED], ids=["compiled", "waiting for a lock"])
def test_an_interrupt_is_pythons(tmp_path, body):
    """Not MindSpore's, which would end the process by SIGTERM; afterwards SIGINT is heard as before."""
    code, told, errors = run(tmp_path, body)
    assert code == 130 and "mindglm: interrupted" in errors, errors
    assert told == "left set()\n"


def test_a_second_interrupt_ends_a_process_that_could_not_attend_to_the_first(tmp_path):
    code, told, errors = run(tmp_path, STUCK, interruptions=2)
    assert (code, told) == (130, ""), errors


def test_the_second_after_the_first_was_attended_to_is_pythons_too(tmp_path):
    """StopRequests: the first asks, the second ends the process by the signal itself."""
    code, _, errors = run(tmp_path, """
    from mindglm.train.signals import StopRequests
    ready()
    with StopRequests() as requests:
        while True:
            time.sleep(0.01)
            if requests.interrupted:
                print("asked", flush=True)
    """, interruptions=2)
    assert code == -signal.SIGINT, errors


def train(folder, module: str, swallowed: bool) -> str:
    """What `mindglm train` says that is interrupted as it imports `module`, and leaves with 130."""
    (folder / "recipe.yaml").write_text(recipe.to_yaml(test_run.loaded(folder / "run")))
    (folder / "script.py").write_text(IMPORTING.format(module=module, swallowed=swallowed))
    done = subprocess.run([sys.executable, "script.py", "train", "recipe.yaml"], cwd=folder, capture_output=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, timeout=100)
    assert done.returncode == 130, done.stderr
    return done.stderr


LATER = ("mindspore._c_expression", "mindspore.common.dtype", "mindspore.utils", "mindformers.core",
         "mindglm.train.loop")


@pytest.mark.parametrize("module", ["mindspore.nn.wrap.cell_wrapper", "mindspore.dataset",
                                    *(pytest.param(name, marks=pytest.mark.slow) for name in LATER)])
def test_an_interrupt_in_the_middle_of_an_import(tmp_path, module):
    """MindSpore, half imported, would abort the process at the interpreter's end."""
    told = train(tmp_path, module, swallowed=False)
    assert "mindglm: interrupted" in told and "Traceback" not in told


def test_an_interrupt_that_an_import_swallows_is_obeyed_after_the_first_step(tmp_path):
    """Some module of MindFormers does without what it cannot import, whatever the reason."""
    told = train(tmp_path, "mindglm.train.loop", swallowed=True)
    assert "stopped by a signal after step 1; the checkpoint is written" in told
