"""Ascend devices as `npu-smi info` lists them, and whether they can be trained on."""

import re
import shutil
import subprocess
from dataclasses import dataclass

from mindglm.diagnose.findings import Finding, fail, ok, warn

USED = 0.15
"""Share of a device's memory that may be in use: without any work the system takes about 4 of 64 GB (Ascend HDK,
dcmi_get_device_hbm_info)."""

_UPPER = re.compile(r"^\|\s*(\d+)\s+(\S+)\s*\|\s*(\S+)\s*\|")
_LOWER = re.compile(r"^\|\s*\d+(?:\s+\d+)?\s*\|\s*[\w:.]+\s*\|.*?(\d+)\s*/\s*(\d+)\s*\|\s*$")
_PROCESS = re.compile(r"^\|\s*(\d+)\s+\d+\s*\|\s*(\d+)\s*\|\s*(\S+)\s*\|")


@dataclass(frozen=True)
class Npu:
    """One device; memory in MB."""

    number: int
    name: str
    health: str
    used: int
    total: int
    processes: tuple[str, ...] = ()
    """`name (pid)` of those that use it."""


def read() -> str | None:
    """What `npu-smi info` prints; None where there is no npu-smi."""
    program = shutil.which("npu-smi") or shutil.which("npu-smi", path="/usr/local/sbin:/usr/local/bin")
    if program is None:
        return None
    try:
        return subprocess.run([program, "info"], capture_output=True, text=True, errors="replace",
                              timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"npu-smi failed: {error}"


def parse(text: str) -> list[Npu]:
    """The devices in the output of `npu-smi info` (Ascend HDK 23 to 26); empty when it lists none."""
    devices, processes, upper, listing = [], {}, None, True
    for line in text.splitlines():
        listing = listing and "Process id" not in line
        if listing and upper is None:
            upper = _UPPER.match(line)
        elif listing and (lower := _LOWER.match(line)):
            devices.append((int(upper[1]), upper[2], upper[3], int(lower[1]), int(lower[2])))
            upper = None
        elif not listing and (process := _PROCESS.match(line)):
            processes.setdefault(int(process[1]), []).append(f"{process[3]} ({process[2]})")
    return [Npu(*device, processes=tuple(processes.get(device[0], ()))) for device in devices]


def visible(devices: list[Npu], variable: str | None) -> list[Npu]:
    """Those that ASCEND_RT_VISIBLE_DEVICES (its value, or None) leaves; ValueError when it is no list of numbers."""
    if variable is None:
        return devices
    chosen = [int(word) for word in variable.split(",") if word.strip()]
    return [device for place, device in enumerate(devices) if place in chosen]


def check(text: str | None, files: int, variable: str | None, target: str, workers: int) -> list[Finding]:
    """Findings on this machine's devices.

    text: output of npu-smi, None without it. files: number of /dev/davinci<N>. variable: ASCEND_RT_VISIBLE_DEVICES.
    target: context.device_target of the recipe. workers: processes that the run starts on this machine.
    """
    if text is None and files == 0:
        if target == "Ascend":
            return [fail("devices", "no Ascend device", "context.device_target is Ascend: set it to auto or CPU, or go "
                         "to a machine that has devices")]
        return [ok("devices", "no Ascend device: a run uses the CPU")]
    if target == "CPU":
        return [ok("devices", "not looked at: context.device_target is CPU")]
    if text is None:
        return [warn("devices", f"{files} device files, but no npu-smi: memory and health are unknown",
                     "in a container mount /usr/local/bin/npu-smi and /usr/local/Ascend/driver of the host")]
    devices = parse(text)
    if not devices:
        return [fail("devices", f"npu-smi lists none: {text.strip()[:200] or 'it printed nothing'}",
                     "is the driver loaded, and is this user in the group HwHiAiUser?")]
    try:
        usable = visible(devices, variable)
    except ValueError:
        return [fail("devices", f"ASCEND_RT_VISIBLE_DEVICES={variable}", "expected numbers: 0,1,2,3,4,5,6,7")]
    findings = [_one(device) for device in usable]
    if len(usable) < workers:
        findings.append(fail("devices", f"{len(usable)} usable devices for {workers} workers on this machine",
                             "change parallel_config or the number of machines, or unset ASCEND_RT_VISIBLE_DEVICES"))
    bad = [finding for finding in findings if finding.level != "ok"]
    free = min((device.total - device.used for device in usable), default=0)
    return bad or [ok("devices", f"{len(usable)} x {usable[0].name}, healthy, at least {free / 1024:.1f} GB free each")]


def _one(device: Npu) -> Finding:
    who = f"device {device.number} ({device.name})"
    if device.health != "OK":
        return fail("devices", f"{who} reports health {device.health}", f"npu-smi info -t health -i {device.number}; "
                    "leave the machine out until its operator has mended it")
    if device.used > USED * device.total:
        whose = f", by {', '.join(device.processes)}" if device.processes else ""
        return fail("devices", f"{who}: {device.used} of {device.total} MB are in use{whose}",
                    "end what runs there, or leave the device out by ASCEND_RT_VISIBLE_DEVICES")
    return ok("devices", who)
