"""What is wrong with one machine for one run: pure functions from facts to findings."""

from dataclasses import dataclass

from mindglm.diagnose import devices, network, versions
from mindglm.diagnose.findings import Finding, fail, ok, warn
from mindglm.diagnose.machine import Machine

WORKER_MEMORY = 600 << 20
"""Bytes of host memory a worker takes before it holds anything: MindSpore with mindformers, measured 575 MB."""
FILES = 512
"""Open files a worker needs beside its connections: shards, logs, libraries."""


@dataclass(frozen=True)
class Need:
    """What a run asks of each of its machines."""

    target: str = "auto"
    """context.device_target"""
    workers: int = 1
    """Processes on each machine."""
    world: int = 1
    """Processes of the whole job."""
    folder: str = ""
    """output_dir; empty: not known."""
    checkpoint_bytes: int = 0
    """One checkpoint; 0: not known."""
    checkpoints: int = 1
    """How many lie on the disk at once while one is written."""
    port: int | None = None
    """The scheduler's."""
    copy_bytes: int = 0
    """Host memory of each machine that asynchronous saves take."""


def check(machine: Machine, need: Need, scheduler_here: bool = True) -> list[Finding]:
    """All findings on `machine`, in the order in which they matter."""
    ascend = machine.ascend and need.target != "CPU"
    return [
        *versions.check(machine.packages, machine.cann, machine.driver, ascend),
        *devices.check(machine.npu_smi, machine.device_files, machine.environment.get("ASCEND_RT_VISIBLE_DEVICES"),
                       need.target, need.workers),
        _nics(machine, need),
        *network.variables(machine.environment, list(machine.nics)),
        *network.ports(list(machine.looked), list(machine.busy), need.port, machine.ephemeral, machine.reserved,
                       scheduler_here),
        *_limits(machine, need),
        _memory(machine, need),
        _folder(machine),
        _disk(machine, need),
    ]


def _nics(machine: Machine, need: Need) -> Finding:
    usable = [nic for nic in machine.nics if nic.up and nic.address and nic.name != "lo"]
    if usable:
        return ok("network", ", ".join(f"{nic.name} {nic.address}" for nic in usable))
    if need.world > need.workers:
        return fail("network", "no interface that is up has an address", "ip addr; the other machines must reach this "
                    "one")
    return ok("network", "loopback only, enough for one machine")


def _limits(machine: Machine, need: Need) -> list[Finding]:
    """A rank may hold a connection to each other rank, and a worker many threads."""
    findings = []
    files, wanted = machine.limits["nofile"], FILES + 4 * need.world
    if 0 <= files < wanted:
        findings.append((fail if files < 256 else warn)("ulimits", f"{files} open files for {wanted} wanted",
                                                        "ulimit -n 65535, or nofile in /etc/security/limits.conf"))
    processes = machine.limits["nproc"]
    if 0 <= processes < 512 * need.workers:
        findings.append(warn("ulimits", f"{processes} processes and threads for {need.workers} workers, which have "
                             "hundreds of threads each", "ulimit -u unlimited, or nproc in /etc/security/limits.conf"))
    for name, what in (("as", "address space (ulimit -v)"), ("fsize", "file size (ulimit -f)")):
        if machine.limits[name] >= 0:
            findings.append(warn("ulimits", f"{what} is limited to {size(machine.limits[name])}",
                                 "set it to unlimited: mapped weights and checkpoints are larger"))
    many = "unlimited" if files < 0 else str(files)
    return findings or [ok("ulimits", f"{many} open files")]


def _memory(machine: Machine, need: Need) -> Finding:
    workers = f"{need.workers} worker{'s' * (need.workers > 1)}"
    text = f"{size(machine.memory_free)} free, {machine.cpus} cores, for {workers}"
    if need.copy_bytes:
        text = f"{text} and a copy of {size(need.copy_bytes)} while a checkpoint is written"
    if machine.memory_free < WORKER_MEMORY * need.workers + need.copy_bytes:
        return fail("memory", text, "a worker takes 0.6 GB before it holds anything, and checkpoint.async_save the "
                    "copy: end other programs, or set it to false")
    if machine.memory_free < 3 * WORKER_MEMORY * need.workers + need.copy_bytes:
        return warn("memory", text, "weights are read through host memory: watch free -g while it starts")
    return ok("memory", text)


def _folder(machine: Machine) -> Finding:
    if not machine.folder:
        return ok("output", "no recipe given: not looked at")
    if machine.folder_error:
        return fail("output", machine.folder_error, "choose another output_dir, or mend owner, mode and mount")
    return ok("output", f"{machine.folder} can be written")


def _disk(machine: Machine, need: Need) -> Finding:
    free = f"{size(machine.disk_free)} of {size(machine.disk_total)} free"
    where = f" for {machine.folder}" if machine.folder else " here"
    if not need.checkpoint_bytes:
        level = ok if machine.disk_free > 1 << 30 else warn
        return ok("disk", free + where) if level is ok else warn("disk", free + where, "make room: a run writes "
                                                                 "checkpoints")
    wanted = need.checkpoint_bytes * need.checkpoints
    text = (f"{free}{where}; {need.checkpoints} checkpoints of {size(need.checkpoint_bytes)} take {size(wanted)} "
            "(the kept ones and the one being written)")
    if machine.disk_free < wanted:
        return fail("disk", text, "make room, choose another output_dir, or lower checkpoint.keep_checkpoint_max")
    if machine.disk_free < 1.2 * wanted:
        return warn("disk", text, "the exported model and logs come on top: make room")
    return ok("disk", text)


def size(count: int) -> str:
    """1234567 -> "1.2 MB" (powers of 1000)."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
