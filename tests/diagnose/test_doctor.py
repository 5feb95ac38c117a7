"""Doctor's checks on made-up machines: each fault is found, with what to do, and a healthy machine has none."""

import dataclasses

import pytest

from mindglm.diagnose import checks, cluster, devices, network, versions
from mindglm.diagnose.checks import Need
from mindglm.diagnose.cluster import Answer
from mindglm.diagnose.machine import Machine
from mindglm.diagnose.network import Nic
from tests.diagnose.machines import machine, npu_smi

NEED = Need("Ascend", workers=8, world=128, folder="/share/out", checkpoint_bytes=121 << 30, checkpoints=4, port=8118)


def levels(findings):
    return {(finding.check, finding.level) for finding in findings if finding.level != "ok"}


def test_a_healthy_machine_has_no_faults():
    findings = checks.check(machine(), NEED)
    assert levels(findings) == set()
    assert {finding.check for finding in findings} == {
        "python", "numpy", "mindspore", "mindformers", "cann", "driver", "devices", "network", "hccl", "ports",
        "ulimits", "memory", "output", "disk"}


def packages(**changed):
    found = {**machine().packages, **changed}
    return {"packages": {name: version for name, version in found.items() if version}}


FAULTS = [
    ("python", "fail", packages(python="3.12.1")),
    ("python", "fail", packages(python="3.9.18")),
    ("numpy", "fail", packages(numpy="2.1.0")),
    ("numpy", "fail", packages(numpy="")),
    ("mindspore", "fail", packages(mindspore="2.10.0")),
    ("mindspore", "fail", packages(mindspore="")),
    ("mindformers", "fail", packages(mindformers="2.0.0")),
    ("tokenizers", "fail", packages(tokenizers="")),
    ("cann", "warn", {"cann": "8.5.0"}),
    ("cann", "fail", {"cann": "8.0.RC2"}),
    ("cann", "fail", {"cann": None}),
    ("driver", "fail", {"driver": "24.1.0"}),
    ("driver", "warn", {"driver": None}),
    ("devices", "fail", {"npu_smi": None, "device_files": 0}),
    ("devices", "warn", {"npu_smi": None}),
    ("devices", "fail", {"npu_smi": "dcmi model initialized failed, because the device is used. ret is -8020"}),
    ("devices", "fail", {"npu_smi": npu_smi(devices=4)}),
    ("devices", "fail", {"npu_smi": npu_smi(sick=(5,))}),
    ("devices", "fail", {"npu_smi": npu_smi(used={3: 61000}, processes=((3, 4711, "python3"),))}),
    ("devices", "fail", {"environment": {"ASCEND_RT_VISIBLE_DEVICES": "0,1"}}),
    ("devices", "fail", {"environment": {"ASCEND_RT_VISIBLE_DEVICES": "all"}}),
    ("network", "fail", {"nics": (Nic("eth0", False, "10.0.0.1"), Nic("lo", True, "127.0.0.1"))}),
    ("HCCL_CONNECT_TIMEOUT", "fail", {"environment": {"HCCL_CONNECT_TIMEOUT": "60"}}),
    ("HCCL_CONNECT_TIMEOUT", "fail", {"environment": {"HCCL_CONNECT_TIMEOUT": "20m"}}),
    ("HCCL_EXEC_TIMEOUT", "fail", {"environment": {"HCCL_EXEC_TIMEOUT": "-1"}}),
    ("HCCL_EXEC_TIMEOUT", "warn", {"environment": {"HCCL_EXEC_TIMEOUT": "600", "HCCL_CONNECT_TIMEOUT": "1200"}}),
    ("HCCL_IF_BASE_PORT", "fail", {"environment": {"HCCL_IF_BASE_PORT": "65530"}}),
    ("HCCL_IF_BASE_PORT", "fail", {"environment": {"HCCL_IF_BASE_PORT": "65505"}}),
    ("HCCL_RDMA_TC", "fail", {"environment": {"HCCL_RDMA_TC": "3"}}),
    ("HCCL_DETERMINISTIC", "fail", {"environment": {"HCCL_DETERMINISTIC": "yes"}}),
    ("HCCL_SOCKET_IFNAME", "fail", {"environment": {"HCCL_SOCKET_IFNAME": "=enp1s0"}}),
    ("HCCL_SOCKET_IFNAME", "fail", {"environment": {"HCCL_SOCKET_IFNAME": "ens"}}),
    ("HCCL_IF_IP", "fail", {"environment": {"HCCL_IF_IP": "10.9.9.9"}}),
    ("HCCL_IF_IP", "fail", {"environment": {"HCCL_IF_IP": "eth0"}}),
    ("RANK_TABLE_FILE", "warn", {"environment": {"RANK_TABLE_FILE": "/x/rank_table.json"}}),
    ("ports", "fail", {"busy": (8118,)}),
    ("ports", "fail", {"busy": (60003,)}),
    ("ports", "warn", {"reserved": ""}),
    ("ports", "warn", {"reserved": "60000-60015"}),
    ("ulimits", "fail", {"limits": {**machine().limits, "nofile": 128}}),
    ("ulimits", "warn", {"limits": {**machine().limits, "nofile": 1000}}),
    ("ulimits", "warn", {"limits": {**machine().limits, "nproc": 1024}}),
    ("ulimits", "warn", {"limits": {**machine().limits, "as": 1 << 33}}),
    ("memory", "fail", {"memory_free": 2 << 30}),
    ("memory", "warn", {"memory_free": 8 << 30}),
    ("output", "fail", {"folder_error": "Read-only file system: /share/out"}),
    ("disk", "fail", {"disk_free": 300 << 30}),
    ("disk", "warn", {"disk_free": 500 << 30}),
]


@pytest.mark.parametrize("check, level, changed", FAULTS, ids=lambda value: str(value)[:40])
def test_a_fault_is_found_with_what_to_do(check, level, changed):
    findings = checks.check(machine(**changed), NEED)
    assert (check, level) in levels(findings), findings
    assert all(finding.do for finding in findings if finding.level != "ok")
    assert levels(findings) - {(check, level)} <= {("driver", "fail"), ("driver", "warn")}, "one fault, one finding"


def test_asynchronous_saves_take_memory_of_the_machine():
    copies = dataclasses.replace(NEED, copy_bytes=1 << 40)
    assert levels(checks.check(machine(), copies)) == {("memory", "fail")}
    assert levels(checks.check(machine(memory_free=2 << 40), copies)) == set()


def test_a_bare_cpu_machine_is_fine_for_a_recipe_that_takes_what_there_is():
    bare = machine(npu_smi=None, device_files=0, cann=None, driver=None, looked=(), reserved="", environment={},
                   nics=(Nic("lo", True, "127.0.0.1"),))
    assert levels(checks.check(bare, Need())) == set()
    assert levels(checks.check(bare, Need("Ascend"))) == {("devices", "fail")}


@pytest.mark.parametrize("rule, name, taken", [
    ("eth", "eth0", True), ("eth", "enp1", False), ("=eth0", "eth0", True), ("=eth0", "eth01", False),
    ("eth,enp", "enp1", True), ("^docker", "eth0", True), ("^docker", "docker0", False), ("^=eth0", "eth0", False),
    ("^=eth0", "eth1", True), ("=a,b", "b", True),
])
def test_interface_rules_of_hccl(rule, name, taken):
    assert network.matches(rule, name) is taken


def test_npu_smi_is_read():
    found = devices.parse(npu_smi(used={3: 61000}, sick=(5,), processes=((3, 4711, "python3"), (3, 4712, "python3"))))
    assert [device.number for device in found] == list(range(8))
    assert found[3].used == 61000 and found[3].processes == ("python3 (4711)", "python3 (4712)")
    assert found[5].health == "Alarm" and {device.total for device in found} == {65536}
    assert [device.number for device in devices.visible(found, "2,3")] == [2, 3]
    assert devices.parse("") == []


def test_versions_of_cann_and_driver_are_read_from_their_files(tmp_path):
    home = tmp_path / "usr/local/Ascend/cann"
    (home / "compiler").mkdir(parents=True)
    (home / "compiler/version.info").write_text("Version=9.0.0\nversion_dir=cann\n")
    (tmp_path / "usr/local/Ascend/driver").mkdir()
    (tmp_path / "usr/local/Ascend/driver/version.info").write_text("Version=26.0.rc1\nascendhal_version=7\n")
    assert versions.cann({}, tmp_path) == "9.0.0" and versions.driver(tmp_path) == "26.0.rc1"
    other = tmp_path / "own"
    (other / "aarch64-linux").mkdir(parents=True)
    (other / "aarch64-linux/ascend_toolkit_install.info").write_text("package_name=x\nversion=8.5.0\n")
    assert versions.cann({"ASCEND_HOME_PATH": str(other)}, tmp_path) == "8.5.0"
    assert versions.cann({}, tmp_path / "none") is None and versions.driver(tmp_path / "none") is None


# ---- machines of a cluster ----


def answer(name, asked=999.9, answered=1000.1, **changed) -> Answer:
    return Answer(name, machine(boot=f"boot-{name}", **changed), "", asked, answered)


def pair(**changed) -> list[Answer]:
    """Two machines; what is changed is the second one's."""
    return [answer("a"), answer("b", **changed)]


TOKENS = {"t0": "boot-a", "t1": "boot-b"}


def test_two_equal_machines_have_no_faults():
    assert levels(cluster.check(pair(), TOKENS, "10.0.0.1")) == set()


@pytest.mark.parametrize("check, level, changed", [
    ("same", "fail", {"cann": "8.5.0"}),
    ("same", "fail", {"source": "other code"}),
    ("same", "fail", packages(numpy="1.26.3")),
    ("same", "fail", {"environment": {"HCCL_CONNECT_TIMEOUT": "600", "HCCL_EXEC_TIMEOUT": "3600"}}),
    ("same", "warn", {"driver": "25.5.0"}),
    ("clock", "warn", {"time": 1003.0}),
    ("clock", "fail", {"time": 800.0}),
    ("shared", "fail", {"tokens": {}}),
    ("reach", "fail", {"reach": "10.0.0.1:8118: timed out"}),
])
def test_a_difference_between_machines_is_found(check, level, changed):
    findings = cluster.check(pair(**changed), TOKENS, "10.0.0.1")
    assert levels(findings) == {(check, level)}, findings
    assert all("b" in finding.text for finding in findings if finding.level != "ok"), "it names the machine"


def test_variables_that_belong_to_a_machine_may_differ():
    assert levels(cluster.check(pair(environment={**machine().environment, "HCCL_IF_IP": "10.0.0.2"}), TOKENS,
                                "10.0.0.1")) == set()


def test_a_slow_answer_is_no_wrong_clock():
    assert answer("a", asked=990.0, answered=1010.0).skew == 0
    assert answer("a", asked=1001.0, answered=1010.0).skew == -1.0
    assert answer("a", asked=990.0, answered=998.0).skew == 2.0


@pytest.mark.parametrize("address, fault", [("10.0.0.1", False), ("10.0.0.7", True), ("127.0.0.1", True)])
def test_node_0_must_own_its_address(address, fault):
    assert (("node 0", "fail") in levels(cluster.check(pair(), TOKENS, address))) is fault


def test_machines_that_do_not_answer_or_stand_there_twice():
    silent = Answer("b", None, "exit code 255: no route", 0.0, 1.0)
    assert levels(cluster.check([answer("a"), silent], {"t0": "boot-a"}, "10.0.0.1")) == {("b", "fail")}
    assert levels(cluster.check([silent], {}, "10.0.0.1")) == {("b", "fail")}
    again = [answer("a"), Answer("b", machine(boot="boot-a"), "", 999.9, 1000.1)]
    assert ("machines", "fail") in levels(cluster.check(again, TOKENS, "10.0.0.1"))


def test_a_file_that_the_head_does_not_see_is_another_folder():
    assert levels(cluster.check(pair(), {"t0": "boot-a"}, "10.0.0.1")) == {("shared", "fail")}


def test_facts_survive_json():
    import json

    there = machine()
    again = Machine.from_json(json.loads(json.dumps(there.to_json())))
    assert levels(checks.check(again, NEED)) == set() and again.nics == there.nics
