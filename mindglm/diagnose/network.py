"""Network interfaces, ports, and HCCL's variables.

Ranges and meanings: CANN 9.0's environment variable reference (hiascend.com, maintenref/envvar and the HCCL user
guide): 32 host ports from HCCL_IF_BASE_PORT on; HCCL_SOCKET_IFNAME as in launch/env_atlas800t_a2.sh.
"""

import fcntl
import ipaddress
import socket
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mindglm.diagnose.findings import Finding, fail, ok, warn

BASE_PORT, HCCL_PORTS, LAST_PORT = 60000, 32, 65535
SIOCGIFADDR = 0x8915
NUMBERS = {
    "HCCL_CONNECT_TIMEOUT": (120, 7200, "seconds"),
    "HCCL_EXEC_TIMEOUT": (0, 2147483647, "seconds, 0: for ever"),
    "HCCL_IF_BASE_PORT": (1024, LAST_PORT - HCCL_PORTS + 1, f"the first of {HCCL_PORTS} ports"),
    "HCCL_BUFFSIZE": (1, 1 << 20, "MB"),
    "HCCL_RDMA_TIMEOUT": (5, 24, "an exponent"),
    "HCCL_RDMA_RETRY_CNT": (1, 7, "times"),
    "HCCL_RDMA_SL": (0, 7, "a service level"),
    "HCCL_RDMA_TC": (0, 255, "a traffic class, a multiple of 4"),
    "MS_NODE_TIMEOUT": (1, 1 << 20, "seconds"),
}
WORDS = {
    "HCCL_DETERMINISTIC": ("true", "false", "strict"),
    "HCCL_WHITELIST_DISABLE": ("0", "1"),
    "HCCL_SOCKET_FAMILY": ("AF_INET", "AF_INET6"),
}


@dataclass(frozen=True)
class Nic:
    """A network interface with its IPv4 address ("" for none)."""

    name: str
    up: bool
    address: str


def nics(root: Path = Path("/sys/class/net")) -> list[Nic]:
    """The interfaces of this machine."""
    found = []
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        try:
            state = (folder / "operstate").read_text().strip()
        except OSError:
            continue  # a file among them, or it has just gone
        found.append(Nic(folder.name, state in ("up", "unknown"), _address(folder.name)))
    return found


def _address(name: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name[:15].encode()))
        except OSError:
            return ""
    return socket.inet_ntoa(answer[20:24])


def busy(ports: Iterable[int]) -> list[int]:
    """Those of `ports` on which another process of this machine listens."""
    taken = []
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # not those that only wait to be closed
            try:
                probe.bind(("", port))
            except OSError:
                taken.append(port)
    return taken


def matches(rule: str, name: str) -> bool:
    """Whether HCCL_SOCKET_IFNAME=`rule` takes interface `name`: "eth" is a prefix, "=eth0" this very name, "^"
    excludes."""
    excluded = rule.startswith("^")
    rule = rule.removeprefix("^")
    words = rule.removeprefix("=").split(",")
    hit = name in words if rule.startswith("=") else any(name.startswith(word) for word in words if word)
    return hit != excluded


def variables(environment: Mapping[str, str], interfaces: list[Nic]) -> list[Finding]:
    """Findings on the HCCL_* variables that are set, and on what they leave open."""
    findings = [_number(name, environment[name]) for name in NUMBERS if name in environment]
    findings += [fail(name, f"{environment[name]!r}", f"expected one of {', '.join(words)}")
                 for name, words in WORDS.items() if environment.get(name, words[0]).lower() not in
                 [word.lower() for word in words]]
    bad = [finding for finding in findings if finding.level == "fail"]
    bad += _interface(environment, interfaces)
    if "RANK_TABLE_FILE" in environment:
        bad.append(warn("RANK_TABLE_FILE", environment["RANK_TABLE_FILE"],
                        "a rank table cannot be mixed with msrun's own way to find the ranks: unset it"))
    connect, execute = environment.get("HCCL_CONNECT_TIMEOUT"), environment.get("HCCL_EXEC_TIMEOUT")
    if not bad and connect and execute and 0 < int(execute) <= int(connect):
        bad.append(warn("HCCL_EXEC_TIMEOUT", f"{execute} s, not more than HCCL_CONNECT_TIMEOUT ({connect} s)",
                        "set it larger: else a rank that waits is named before the one that is late"))
    return bad or [ok("hccl", _told(environment))]


def _number(name: str, text: str) -> Finding:
    low, high, what = NUMBERS[name]
    value = int(text) if text.isascii() and text.isdigit() else -1
    if low <= value <= high and (name != "HCCL_RDMA_TC" or value % 4 == 0):
        return ok(name, text)
    return fail(name, f"{text!r}", f"expected {what}, {low} to {high}")


def _interface(environment: Mapping[str, str], interfaces: list[Nic]) -> list[Finding]:
    usable = [nic for nic in interfaces if nic.up and nic.address]
    names = ", ".join(f"{nic.name} {nic.address}" for nic in usable) or "none with an address"
    address, rule = environment.get("HCCL_IF_IP"), environment.get("HCCL_SOCKET_IFNAME")
    if address is not None:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            return [fail("HCCL_IF_IP", address, "expected an address such as 10.0.0.1")]
        if ":" not in address and address not in [nic.address for nic in interfaces]:
            return [fail("HCCL_IF_IP", f"{address} is no address of this machine ({names})",
                         "it differs from machine to machine: do not set it in a shared file; HCCL_SOCKET_IFNAME may "
                         "be the same on all")]
    elif rule is not None and not any(matches(rule, nic.name) for nic in usable):
        return [fail("HCCL_SOCKET_IFNAME", f"{rule} fits no interface that is up and has an address ({names})",
                     "name one of these; =NAME is this very one, NAME also all that begin so, ^NAME all but it")]
    return []


def _told(environment: Mapping[str, str]) -> str:
    set_here = sorted(name for name in environment if name.startswith("HCCL_"))
    if not set_here:
        return "no HCCL variable is set here; launch/env_atlas800t_a2.sh sets them on Ascend machines"
    return ", ".join(f"{name}={environment[name]}" for name in set_here)


def ports_to_look_at(port: int | None, environment: Mapping[str, str], ascend: bool) -> list[int]:
    """The scheduler's port, and HCCL's on machines with devices (none where HCCL_IF_BASE_PORT is no such port)."""
    base = environment.get("HCCL_IF_BASE_PORT", str(BASE_PORT))
    looked = [] if port is None else [port]
    if ascend and _number("HCCL_IF_BASE_PORT", base).level == "ok":
        looked += range(int(base), int(base) + HCCL_PORTS)
    return looked


def ports(looked: list[int], taken: list[int], port: int | None, ephemeral: tuple[int, int], reserved: str,
          scheduler_here: bool = True) -> list[Finding]:
    """Findings on the ports `looked` at, of which others hold `taken`; `ephemeral`, `reserved`: the kernel's ranges."""
    findings = []
    if port in taken and scheduler_here:
        findings.append(fail("ports", f"the scheduler's port {port} is in use",
                             f"ss -ltnp | grep {port} shows by whom; end that job, or give another --master-port"))
    hccl = [number for number in looked if number != port]
    held = [number for number in hccl if number in taken]
    if held:
        findings.append(fail("ports", f"HCCL's ports are in use: {', '.join(map(str, held))}", "end the job that holds "
                             "them, or set HCCL_IF_BASE_PORT to the first of 32 free ones"))
    loose = [number for number in hccl if ephemeral[0] <= number <= ephemeral[1] and not _within(number, reserved)]
    if loose:
        findings.append(warn("ports", f"the kernel may give HCCL's ports {hccl[0]}-{hccl[-1]} to anybody",
                             f"once, as root: sysctl -w net.ipv4.ip_local_reserved_ports={hccl[0]}-{hccl[-1]}"))
    if findings:
        return findings
    names = [str(port)] if port is not None else []
    names += [f"{hccl[0]}-{hccl[-1]}"] if hccl else []
    return [ok("ports", f"{' and '.join(names)} free" if names else "none asked for")]


def _within(number: int, reserved: str) -> bool:
    for part in reserved.split(","):
        low, _, high = part.strip().partition("-")
        if low.isdigit() and int(low) <= number <= int(high or low):
            return True
    return False
