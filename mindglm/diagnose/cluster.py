"""What is wrong between machines of one job: pure functions over the facts of all."""

import ipaddress
from dataclasses import dataclass

from mindglm.diagnose.findings import Finding, fail, ok, warn
from mindglm.diagnose.machine import Machine

SKEW_WARN, SKEW_FAIL = 1.0, 60.0  # seconds
PER_MACHINE = ("HCCL_IF_IP", "ASCEND_RT_VISIBLE_DEVICES", "ASCEND_PROCESS_LOG_PATH")
"""Variables that may differ between machines."""


@dataclass(frozen=True)
class Answer:
    """What one machine said, or why it did not, with the clock here when it was asked and when it had answered."""

    name: str
    machine: Machine | None
    error: str
    asked: float
    answered: float

    @property
    def skew(self) -> float:
        """Seconds that its clock is off for sure: 0 where the way there and back explains the difference."""
        if self.machine is None:
            return 0.0
        return max(0.0, self.machine.time - self.answered) - max(0.0, self.asked - self.machine.time)


def check(answers: list[Answer], tokens: dict[str, str], address: str) -> list[Finding]:
    """Findings across machines; the first answer is node 0's.

    tokens: name -> content of the files in the shared folder as seen here, after all have answered. address: how node 0
    is to be reached.
    """
    findings = [fail(answer.name, answer.error,
                     "ssh to it by hand; the checkout and the environment must lie under the same paths as here")
                for answer in answers if answer.machine is None]
    known = [answer for answer in answers if answer.machine is not None]
    if not known:
        return findings
    return [*findings, *_twice(known), *_same(known), *_clocks(known), *_folder(known, tokens),
            *_address(answers, known, address), *_reach(known)]


def _twice(known: list[Answer]) -> list[Finding]:
    seen: dict[str, str] = {}
    findings = []
    for answer in known:
        first = seen.setdefault(answer.machine.boot, answer.name)
        if first != answer.name and answer.machine.boot:
            findings.append(fail("machines", f"{first} and {answer.name} are the same machine",
                                 "one line a machine in the hosts file; slots=8 for 8 workers"))
    return findings


def _same(known: list[Answer]) -> list[Finding]:
    """Versions, code and variables that must not differ."""
    findings = []
    for what, read in (("python packages", lambda machine: machine.packages), ("CANN", lambda machine: machine.cann),
                       ("driver", lambda machine: machine.driver), ("mindglm's code", lambda machine: machine.source),
                       ("variables", _variables)):
        groups: dict[str, list[str]] = {}
        values = {}
        for answer in known:
            value = read(answer.machine)
            groups.setdefault(repr(value), []).append(answer.name)
            values[repr(value)] = value
        if len(groups) > 1:
            most = max(groups, key=lambda key: len(groups[key]))
            odd = {key: names for key, names in groups.items() if key != most}
            told = "; ".join(f"{', '.join(names)}: {_differences(values[most], values[key])}"
                             for key, names in odd.items())
            level = warn if what == "driver" else fail
            findings.append(level("same", f"{what} differ from most machines: {told}",
                                  "install and set the same everywhere; a shared disk makes it so"))
    return findings or [ok("same", "versions, code and variables are the same everywhere")]


def _variables(machine: Machine) -> dict[str, str]:
    return {name: value for name, value in machine.environment.items() if name not in PER_MACHINE}


def _differences(most, odd) -> str:
    if not isinstance(most, dict):
        return f"{odd} instead of {most}"
    names = sorted(name for name in {*most, *odd} if most.get(name) != odd.get(name))
    return ", ".join(f"{name} {odd.get(name, 'missing')} instead of {most.get(name, 'none')}" for name in names)


def _clocks(known: list[Answer]) -> list[Finding]:
    findings = []
    for answer in known:
        if abs(answer.skew) > SKEW_WARN:
            level = fail if abs(answer.skew) > SKEW_FAIL else warn
            findings.append(level("clock", f"{answer.name} is {abs(answer.skew):.1f} s "
                                  f"{'ahead' if answer.skew > 0 else 'behind'}", "set up NTP or chrony: logs cannot be "
                                  "put in order, and TLS certificates may seem expired"))
    return findings or [ok("clock", f"no machine is off by more than {SKEW_WARN:.0f} s")]


def _folder(known: list[Answer], tokens: dict[str, str]) -> list[Finding]:
    """Each machine left a file with its boot number; it must be seen here, and ours there."""
    asked = [answer for answer in known if answer.machine.folder and not answer.machine.folder_error]
    if not asked:
        return []
    blind = [answer.name for answer in asked if not answer.machine.tokens]
    unseen = [answer.name for answer in asked if answer.machine.boot not in tokens.values()]
    folder = asked[0].machine.folder
    if blind or unseen:
        who = ", ".join(sorted({*blind, *unseen}))
        return [fail("shared", f"{folder} is not the same folder on {who}: files written elsewhere are not seen",
                     "output_dir must lie on a disk that all machines share, mounted under the same path")]
    return [ok("shared", f"{folder} is one folder for all machines")]


def _address(answers: list[Answer], known: list[Answer], address: str) -> list[Finding]:
    if len(answers) < 2 or known[0].name != answers[0].name:
        return []
    try:
        if ipaddress.ip_address(address).is_loopback:
            return [fail("node 0", f"{address} means every machine itself", "write node 0's address in the hosts file "
                         "(addr=10.0.0.1), or give --master-addr")]
    except ValueError:
        return []  # a name: whether it can be reached is tried
    own = [nic.address for nic in known[0].machine.nics]
    if address not in own:
        return [fail("node 0", f"{address} is no address of {known[0].name} ({', '.join(filter(None, own))})",
                     "msrun starts the scheduler only where the address is the machine's own: correct addr= or "
                     "--master-addr")]
    return [ok("node 0", f"{address} is an address of {known[0].name}")]


def _reach(known: list[Answer]) -> list[Finding]:
    cut = [answer for answer in known if answer.machine.reach]
    if cut:
        return [fail("reach", "; ".join(f"{answer.name}: {answer.machine.reach}" for answer in cut),
                     "systemctl status firewalld on node 0; is addr= in a network that all machines share?")]
    return [ok("reach", "all machines reach node 0's port")] if len(known) > 1 else []
