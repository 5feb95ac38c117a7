"""The facts of one machine, gathered in a fraction of a second and passed on as JSON: the checks look at these alone.

`gather` is the only part of doctor that touches the machine; what it writes is one small file in the output folder,
which it removes.
"""

import dataclasses
import hashlib
import os
import platform
import resource
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mindglm.diagnose import devices, network, versions

VARIABLES = ("HCCL_", "MS_NODE_TIMEOUT", "MS_ALLOC_CONF", "ASCEND_", "RANK_TABLE_FILE", "LCCL_", "CUSTOM_MATMUL")
TOKEN = ".mindglm-doctor"
PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Machine:
    """What `gather` found. Memory and disk in bytes."""

    host: str
    boot: str
    """The kernel's number of this boot and the host name: two ssh names of one machine have the same, two containers on
    one machine have not."""
    time: float
    """Its clock, seconds since 1970."""
    executable: str
    packages: dict[str, str]
    cann: str | None
    driver: str | None
    source: str
    """Fingerprint of mindglm's own code."""
    npu_smi: str | None
    """What `npu-smi info` printed; None without it."""
    device_files: int
    environment: dict[str, str]
    nics: tuple[network.Nic, ...]
    looked: tuple[int, ...]
    busy: tuple[int, ...]
    """Ports that were looked at, and those of them that are in use."""
    ephemeral: tuple[int, int]
    reserved: str
    limits: dict[str, int]
    """Soft limits; -1: unlimited."""
    cpus: int
    memory_free: int
    folder: str
    """The run's output folder; empty: none was asked about."""
    folder_error: str
    """Why it cannot be written; empty: it can."""
    disk_free: int
    disk_total: int
    tokens: dict[str, str] = field(default_factory=dict)
    """Name -> content of the files that others left in the folder, as seen from here."""
    reach: str = ""
    """Why the scheduler's address does not answer from here; "": it does, or nobody asked."""

    @property
    def ascend(self) -> bool:
        return self.npu_smi is not None or self.device_files > 0

    def to_json(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict) -> "Machine":
        interfaces = tuple(network.Nic(**nic) for nic in values["nics"])
        return cls(**{**values, "nics": interfaces, "ephemeral": tuple(values["ephemeral"])})


def gather(folder: str = "", port: int | None = None, tokens: Iterable[str] = (), leave: str = "",
           reach: tuple[str, int] | None = None) -> Machine:
    """The facts of this machine.

    folder: an output folder to write to. port: the scheduler's. tokens: files to read in the folder. leave: a file to
    leave there for others to read. reach: (address, port) to connect to.
    """
    npu_smi, files = devices.read(), len(list(Path("/dev").glob("davinci[0-9]*")))
    environment = {name: value for name, value in os.environ.items() if name.startswith(VARIABLES)}
    looked = network.ports_to_look_at(port, environment, npu_smi is not None or files > 0)
    free, total = _disk(folder or ".")
    return Machine(
        host=socket.gethostname(), boot=_boot(), executable=os.sys.executable,
        packages=versions.installed() | {"machine": platform.machine()}, cann=versions.cann(), driver=versions.driver(),
        source=fingerprint(), npu_smi=npu_smi, device_files=files, environment=environment,
        nics=tuple(network.nics()), looked=tuple(looked), busy=tuple(network.busy(looked)),
        ephemeral=_two(_text("/proc/sys/net/ipv4/ip_local_port_range")),
        reserved=_text("/proc/sys/net/ipv4/ip_local_reserved_ports"), limits=_limits(),
        cpus=len(os.sched_getaffinity(0)), memory_free=_memory_free(), folder=folder,
        folder_error=write_error(folder) if folder else "", disk_free=free, disk_total=total,
        tokens={name: _text(Path(folder) / name) for name in tokens if (Path(folder) / name).exists()},
        reach=reach_error(*reach) if reach else "", time=_leave(folder, leave))


def _leave(folder: str, name: str) -> float:
    """Leave a file for others, as the last act; the time."""
    if folder and name:
        try:
            (Path(folder) / name).write_text(_boot())
        except OSError:
            return time.time()  # folder_error has said it
    return time.time()


def fingerprint(root: Path = PACKAGE) -> str:
    """12 hexadecimal digits that are the same on machines with the same code."""
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def standing(folder: str) -> Path:
    """`folder`, or what of its path is there already: doctor makes no folders."""
    path = Path(folder).absolute()
    while not path.exists():
        path = path.parent
    return path


def write_error(folder: str) -> str:
    """Why nothing can be written where `folder` is or will be; empty when it can."""
    path = standing(folder) / f"{TOKEN}-{socket.gethostname()}-{os.getpid()}"
    try:
        with open(path, "wb") as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
        path.unlink()
    except OSError as error:
        return f"{error.strerror}: {error.filename}"
    return ""


def reach_error(address: str, port: int, seconds: float = 5.0) -> str:
    """Why no connection to address:port can be made from here; empty when it can."""
    try:
        socket.create_connection((address, port), timeout=seconds).close()
    except OSError as error:
        return f"{address}:{port}: {error}"
    return ""


def _disk(folder: str) -> tuple[int, int]:
    """Free and total bytes where `folder` is or will be."""
    found = os.statvfs(standing(folder))
    return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize


def _text(path) -> str:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""


def _boot() -> str:
    return f"{_text('/proc/sys/kernel/random/boot_id')}@{socket.gethostname()}"


def _two(text: str) -> tuple[int, int]:
    words = text.split()
    return (int(words[0]), int(words[1])) if len(words) == 2 else (0, 0)


def _limits() -> dict[str, int]:
    names = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC, "memlock": resource.RLIMIT_MEMLOCK,
             "as": resource.RLIMIT_AS, "fsize": resource.RLIMIT_FSIZE}
    return {name: resource.getrlimit(number)[0] for name, number in names.items()}


def _memory_free() -> int:
    for line in _text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
