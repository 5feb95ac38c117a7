"""`mindglm doctor` on the machine that runs the tests: a bare CPU machine, and "many" of it by a stand-in for ssh."""

import json
import os
import socket
import subprocess
import sys

import pytest

from mindglm.cli import main as cli
from mindglm.diagnose import hosts, machine, network
from mindglm.errors import UserError
from tests.launch.stand_ins import ROOT, SSH, free_port
from tests.recipe.helpers import recipe_text


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(recipe_text().replace("output_dir: out", f"output_dir: {tmp_path / 'out' / 'run'}"))
    return str(path)


def test_this_machine_can_run_a_recipe_and_nothing_is_left_behind(recipe, tmp_path, capsys):
    assert cli.main(["doctor", recipe]) == 0
    told = capsys.readouterr().out
    for check in ("python", "mindspore", "devices", "network", "hccl", "ports", "ulimits", "memory", "output", "disk"):
        assert f"\nok    {check}: " in told or f"\nwarn  {check}: " in told, told
    assert "3 checkpoints of" in told and not (tmp_path / "out").exists()


def test_what_fails_is_said_with_what_to_do(recipe, capsys, monkeypatch):
    monkeypatch.setenv("HCCL_CONNECT_TIMEOUT", "soon")
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        assert cli.main(["doctor", "--master-port", str(port), recipe, "context.device_target=Ascend"]) == 1
    told = capsys.readouterr().out.splitlines()
    assert told[-1] == "3 failed: HCCL_CONNECT_TIMEOUT, devices, ports"
    place = told.index("fail  HCCL_CONNECT_TIMEOUT: 'soon'")
    assert told[place + 1] == "      -> expected seconds, 120 to 7200"


@pytest.mark.parametrize("name", ["ar", "dit", "vae", "glyph", "tokenizer"])
def test_the_room_for_checkpoints_is_that_of_the_recipe(name):
    """By the shapes of what is trained: 12 bytes a value, 16 with an average."""
    from mindglm import recipe as recipes
    from mindglm.cli.doctor import _checkpoint_bytes

    loaded = recipes.load(ROOT / f"recipes/nano/{name}.yaml")
    average = recipes.load(ROOT / f"recipes/nano/{name}.yaml", ["ema.decay=0.9"])
    assert 0 < _checkpoint_bytes(average) <= _checkpoint_bytes(loaded) * 4 / 3 + 1 and (
        loaded.ema.decay or _checkpoint_bytes(average) * 3 == _checkpoint_bytes(loaded) * 4)


def test_as_json(capsys):
    assert cli.main(["doctor", "--json"]) == 0
    (findings,) = json.loads(capsys.readouterr().out).values()
    assert {finding["level"] for finding in findings} <= {"ok", "warn"}


@pytest.mark.parametrize("first", ["65505", "65510", "70000", "sixty"])
def test_ports_of_hccl_beyond_the_last_port_are_a_finding(first, tmp_path, capsys, monkeypatch):
    """On a machine with npu-smi, whose output need not be UTF-8."""
    program = tmp_path / "npu-smi"
    program.write_bytes(b"#!/bin/sh\nprintf '| NPU \\351 |\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("HCCL_IF_BASE_PORT", first)
    assert cli.main(["doctor"]) == 1
    told = capsys.readouterr().out
    assert f"fail  HCCL_IF_BASE_PORT: '{first}'\n      -> expected the first of 32 ports, 1024 to 65504" in told
    assert "fail  devices: npu-smi lists none: | NPU \N{REPLACEMENT CHARACTER} |" in told


def test_the_last_ports_of_all_are_looked_at():
    assert network.ports_to_look_at(None, {"HCCL_IF_BASE_PORT": "65504"}, True) == list(range(65504, 65536))


@pytest.mark.parametrize("port", ["0", "-1", "70000", "eight"])
def test_a_master_port_that_is_none(port, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["doctor", f"--master-port={port}"])
    assert left.value.code == 2 and f"given '{port}', expected a port, 1 to 65535" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    assert "Not a directory" in machine.write_error(str(tmp_path / "file"))
    assert machine.write_error(str(tmp_path / "not" / "there" / "yet")) == "" and list(tmp_path.iterdir()) == [
        tmp_path / "file"]


def test_a_recipe_with_mistakes_is_refused_with_its_own_message(tmp_path, capsys):
    assert cli.main(["doctor", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err


def doctor(tmp_path, *arguments):
    """(exit code, output) of doctor in a process of its own, with ssh that stays here."""
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir(exist_ok=True)
    (bin_dir / "ssh").write_text(SSH)
    (bin_dir / "ssh").chmod(0o755)
    environment = {**os.environ, "PATH": f"{bin_dir}:{os.environ['PATH']}", "SSH_HOSTS": str(tmp_path / "asked"),
                   "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-m", "mindglm", "doctor", *map(str, arguments)], cwd=tmp_path, text=True,
                            env=environment, capture_output=True, timeout=120)
    return result.returncode, result.stdout + result.stderr


def test_machines_of_a_hosts_file_are_asked_and_compared(recipe, tmp_path):
    """All are this machine, which is noticed; everything else is as it should be."""
    here = next(nic.address for nic in machine.gather().nics if nic.address)
    (tmp_path / "hosts").write_text(f"nodeA slots=1 addr={here}\nuser@nodeB\nunreachable\n")
    code, told = doctor(tmp_path, "--hosts", "hosts", "--master-addr", here, "--master-port", free_port(), recipe,
                        "parallel_config.data_parallel=3", "runner_config.global_batch_size=48")
    assert code == 1, told
    assert "fail  unreachable: exit code 255: ssh: connect to host unreachable" in told
    assert "fail  machines: nodeA and user@nodeB are the same machine" in told
    for fine in ("same: versions, code and variables are the same everywhere", "clock: no machine is off",
                 f"shared: {tmp_path} is one folder for all machines", f"node 0: {here} is an address of nodeA",
                 "reach: all machines reach node 0's port"):
        assert f"ok    {fine}" in told, told
    assert (told.count("\n== "), told.splitlines()[-1]) == (2, "2 failed: machines, unreachable")
    assert set((tmp_path / "asked").read_text().split()) == {"nodeA", "user@nodeB", "unreachable"}
    assert {path.name for path in tmp_path.iterdir()} == {"r.yaml", "bin", "hosts", "asked"}, "a file was left"


def test_a_port_that_does_not_answer_and_an_address_that_is_not_node_0s(recipe, tmp_path):
    """192.0.2.0/24 belongs to nobody (RFC 5737), and 203.0.113.1 neither."""
    (tmp_path / "hosts").write_text("nodeA\nnodeB\n")
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        code, told = doctor(tmp_path, "--hosts", "hosts", "--master-addr", "203.0.113.1", "--master-port", port, recipe,
                            "parallel_config.data_parallel=2")
    assert code == 1
    assert "fail  node 0: 203.0.113.1 is no address of nodeA" in told
    assert f"fail  ports: the scheduler's port {port} is in use" in told and "reach" not in told


@pytest.mark.parametrize("text, words", [
    ("", "names no machine"), ("node1 slots=eight", "hosts:1: 'node1 slots=eight'"),
    ("a\na", "hosts:2: a stands there"), ("slots=8", "expected NAME"), ("a port=1", "expected NAME"),
])
def test_a_wrong_hosts_file_is_refused_with_its_line(tmp_path, text, words):
    (tmp_path / "hosts").write_text(text)
    with pytest.raises(UserError, match=words):
        hosts.read_hosts(str(tmp_path / "hosts"))


def test_a_hosts_file_that_is_no_text(tmp_path, capsys):
    (tmp_path / "hosts").write_bytes(b"node\xff\n")
    assert cli.main(["doctor", "--hosts", str(tmp_path / "hosts")]) == 2
    assert "hosts: no text; expected a file with a machine a line" in capsys.readouterr().err


def test_hosts_and_recipe_must_fit(recipe, tmp_path, capsys):
    (tmp_path / "hosts").write_text("a\nb\n")
    assert cli.main(["doctor", "--hosts", str(tmp_path / "hosts"), recipe]) == 2
    assert "1 processes, which 2 machines cannot share" in capsys.readouterr().err
    (tmp_path / "hosts").write_text("a slots=8\n")
    assert cli.main(["doctor", "--hosts", str(tmp_path / "hosts"), recipe]) == 2
    assert "slots=8" in capsys.readouterr().err
