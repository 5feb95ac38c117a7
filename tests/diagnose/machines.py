"""Made-up machines for the checks, and what npu-smi prints on one with eight devices."""

from mindglm.diagnose.machine import Machine
from mindglm.diagnose.network import Nic

HEAD = """+------------------------------------------------------------------------------------------------+
| npu-smi 25.5.0                   Version: 25.5.0                                               |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
"""
PROCESSES = """+---------------------------+---------------+----------------------------------------------------+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
"""


def npu_smi(devices: int = 8, used: dict[int, int] | None = None, sick: tuple[int, ...] = (),
            processes: tuple[tuple[int, int, str], ...] = ()) -> str:
    """`npu-smi info` of Ascend HDK 25 (form: Project-HAMi/HAMi-WebUI issue 47)."""
    text = HEAD
    for number in range(devices):
        health = "Alarm" if number in sick else "OK"
        taken = (used or {}).get(number, 3197)
        text += (f"| {number}     910B1               | {health:14}| 91.3        33         0    / 0             |\n"
                 f"| 0                         | 0000:C1:00.0  | 0           0    / 0   {taken} / 65536         |\n"
                 "+===========================+===============+====================================================+\n")
    text += PROCESSES
    for number, pid, name in processes:
        text += f"| {number}       0                 | {pid}        | {name}            | 61000                   |\n"
    return text


def machine(**changed) -> Machine:
    """A healthy machine of a cluster with eight devices, everything as it should be."""
    values = {
        "host": "node1", "boot": "boot-1", "time": 1000.0, "executable": "/share/venv/bin/python",
        "packages": {"python": "3.11.4", "mindspore": "2.9.0", "mindformers": "1.9.0", "numpy": "1.26.4",
                     "safetensors": "0.5.0", "tokenizers": "0.22.0", "pyyaml": "6.0", "pillow": "11.0"},
        "cann": "9.0.0", "driver": "26.0.rc1", "source": "abc", "npu_smi": npu_smi(), "device_files": 8,
        "environment": {"HCCL_CONNECT_TIMEOUT": "1200", "HCCL_EXEC_TIMEOUT": "3600"},
        "nics": (Nic("eth0", True, "10.0.0.1"), Nic("lo", True, "127.0.0.1")),
        "looked": (8118, *range(60000, 60032)), "busy": (), "ephemeral": (32768, 60999), "reserved": "60000-60031",
        "limits": {"nofile": 65535, "nproc": -1, "memlock": -1, "as": -1, "fsize": -1}, "cpus": 192,
        "memory_free": 1 << 40, "folder": "/share/out", "folder_error": "", "disk_free": 10 << 40,
        "disk_total": 20 << 40,
        "tokens": {".mindglm-doctor-head": "here"},
    }
    return Machine(**{**values, **changed})
