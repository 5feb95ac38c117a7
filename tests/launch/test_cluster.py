"""launch/train_cluster.sh: the hosts file, what is run where, two "nodes" here by stand-ins for ssh and msrun."""

import shlex
import signal
import time

import pytest

from tests.launch.stand_ins import ROOT, Place, free_port

RECIPE = [ROOT / "recipes/nano/dit.yaml", "parallel_config.data_parallel=2"]
CLUSTER = ["bash", ROOT / "launch" / "train_cluster.sh"]


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path, train='bash worker.sh "$WHAT"')
    (place.work / "hosts").write_text("# two machines\nnodeA slots=1 addr=127.0.0.1\nuser@nodeB\n")
    yield place
    place.close()


def cluster(*options):
    return [*CLUSTER, "--hosts", "hosts", "--master-addr", "127.0.0.1", "--log-dir", "logs", *options, *RECIPE]


def test_dry_run_prints_every_command(place):
    (place.work / "hosts").write_text("nodeA slots=1 addr=10.0.0.1\nuser@nodeB\n")
    code, text = place.run(*CLUSTER, "--hosts", "hosts", "--dry-run", "--nic", "ens3", "--env", "my env.sh", *RECIPE)
    assert code == 0, text
    lines = text.splitlines()
    ssh = [shlex.split(line) for line in lines if line.startswith("ssh ")]
    assert [words[-2] for words in ssh] == ["nodeA", "user@nodeB"]
    for rank, words in enumerate(ssh):
        assert words[-1].startswith(f"cd {place.work} && exec env ")
        remote = shlex.split(words[-1])
        assert f"MINDGLM_ENV_FILE={place.work}/my env.sh" in remote and str(ROOT / "launch/train_node.sh") in remote
        for name, value in {"--nodes": "2", "--node-rank": str(rank), "--master-addr": "10.0.0.1", "--nic": "ens3",
                            "--master-port": "8118", "--log-dir": "output/msrun_log"}.items():
            assert remote[remote.index(name) + 1] == value
        assert remote[-2:] == [str(word) for word in RECIPE]
    msrun = [line for line in lines if "msrun --worker_num=2 --local_worker_num=1 --master_addr=10.0.0.1" in line]
    assert [f"--node_rank={rank} " in line for rank, line in enumerate(msrun)] == [True, True]
    assert not (place.work / "ssh_hosts").exists() and not (place.work / "logs").exists()


@pytest.mark.parametrize("hosts, words", [
    ("", "names no machine"),
    ("a slots=x", "hosts:1: 'a slots=x'"),
    ("a\nb gpus=8", "hosts:2"),
    ("a\na", "a stands there twice"),
    ("a slots=8\nb slots=8", "1 on each of 2 machines, but hosts says a slots=8"),
    ("a\nb\nc", "3 machines of hosts cannot share evenly"),
    ("localhost\nb", "the other machines cannot reach"),
])
def test_a_wrong_hosts_file_is_refused(place, hosts, words):
    (place.work / "hosts").write_text(hosts)
    code, text = place.run(*CLUSTER, "--hosts", "hosts", *RECIPE)
    assert code == 2 and words in text, text
    assert not (place.work / "ssh_hosts").exists()


def test_two_nodes_end_well(place):
    code, text = place.run(*cluster("--master-port", free_port()), WHAT="done")
    assert code == 0, text
    assert "[nodeA]" in text and "[user@nodeB]" in text
    assert (place.work / "logs/worker_0.log").exists() and (place.work / "logs/worker_1.log").exists()
    assert sorted((place.work / "ssh_hosts").read_text().split()) == ["nodeA", "user@nodeB"]


def test_a_worker_that_dies_on_one_node_ends_all(place):
    start = time.monotonic()
    code, text = place.run(*cluster("--master-port", free_port()), WHAT="raise")
    assert code == 1 and time.monotonic() - start < 30, text
    assert "ValueError: boom" in text
    assert text.splitlines()[-1] == ("mindglm: node 1 (user@nodeB) failed first, rank 1 first, exit code 1; see above")
    assert place.survivors() == []


def test_all_nodes_start_again_after_a_fault(place):
    code, text = place.run(*cluster("--master-port", free_port(), "--max-restarts", 1), WHAT="once")
    assert code == 0, text
    assert text.count("2 nodes, 2 workers") == 2
    assert {path.name for path in (place.work / "logs/attempt_0").iterdir()} >= {"worker_0.log", "worker_1.log"}


def test_a_signal_stops_all_nodes_in_good_order(place):
    process = place.start(*cluster("--master-port", free_port()), WHAT="work")
    place.await_file("ready_0")
    place.await_file("ready_1")
    time.sleep(0.5)
    (place.work / "finished").touch()
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 143, text
    assert (place.work / "saved_0").exists() and (place.work / "saved_1").exists() and place.survivors() == []


def test_a_lost_connection_stops_its_node(place):
    """The launcher is killed without a chance to say anything: the leash breaks, and the nodes stop by themselves."""
    process = place.start(*cluster("--master-port", free_port()), WHAT="work")
    place.await_file("ready_0")
    place.await_file("ready_1")
    (place.work / "finished").touch()
    process.kill()
    end = time.monotonic() + 30
    while place.survivors() and time.monotonic() < end:
        time.sleep(0.1)
    assert place.survivors() == [] and (place.work / "saved_0").exists()


def test_a_machine_that_cannot_be_reached_is_named(place):
    (place.work / "hosts").write_text("nodeA addr=127.0.0.1\nunreachable\n")
    code, text = place.run(*cluster("--master-port", free_port()), WHAT="work")
    assert code == 1 and "No route to host" in text, text
    assert text.splitlines()[-1] == "mindglm: unreachable: ssh failed or lost the machine"
