"""What machines can do: public figures with their sources, assumptions marked as ours, and overrides by measured ones.

Times that are planned from this table are planned, never measured. `load` takes the name of a machine or a YAML file
of measured figures: {base: atlas800t-a2, matmul_efficiency: 0.61, ...}; what it gives replaces the table's figure.
"""

import dataclasses
import math
import os
from dataclasses import dataclass
from pathlib import Path

from mindglm.errors import UserError

GB, GIB = 1e9, 2**30


@dataclass(frozen=True)
class Hardware:
    """One device of a cluster and its links. Rates per device, bytes and FLOPs a second."""

    name: str
    title: str
    form: str
    """Which form of `mindglm.ops` runs there: "fused" (Ascend's kernels) or "composed" (CPU)."""
    devices_per_node: int
    memory: float
    """Bytes of device memory."""
    reserved: float
    """Bytes of it that driver, runtime and fragments take before a tensor is placed."""
    peak_flops: float
    """Dense matrix products in bfloat16 (float32 on CPU)."""
    memory_bandwidth: float
    node_bandwidth: float
    """To the other devices of the node, one way, all links together."""
    pair_bandwidth: float
    """To one other device of the node, one way."""
    network_bandwidth: float
    """To other nodes, one way."""
    host_bandwidth: float
    """Between device and host."""
    host_memory_bandwidth: float
    """Of one process on the host: what NumPy reads and writes."""
    storage_bandwidth: float
    """Of one node to the checkpoint folder."""
    matmul_efficiency: float
    """Share of peak_flops that matrix products of a layer reach."""
    attention_efficiency: float
    """The same of the attention kernel."""
    memory_efficiency: float
    """Share of memory_bandwidth that elementwise work reaches."""
    link_efficiency: float
    """Share of the links' rates that transfers reach."""
    node_latency: float
    """Seconds until a message within a node has begun."""
    network_latency: float
    """The same between nodes."""
    launch_seconds: float
    """The host's time to launch one kernel in dynamic graphs; a device that is faster waits for it."""
    normal_seconds: float
    """The host's time to draw one normal number."""
    sources: tuple[tuple[str, str], ...]
    """(fields, where the figures come from)."""


OURS = "assumed by us, not measured; override it"
SPEC_A2 = ("Huawei, Atlas 800T A2 training server, technical specifications: 8 processors, 2.504 PFLOPS FP16 dense "
           "with 910B3 (313 TFLOPS each; 3.008 with 910B2), 64 GB and 1600 GB/s each, 7 HCCS links with 392 GB/s both "
           "ways, full mesh, one 200GE RoCE port each, PCIe 4.0 x16 to 4 Kunpeng 920")
SPEC_A3 = ("Huawei, Atlas 800T A3 SuperPoD server, technical specifications, and Zuo et al. 2025 (arXiv:2506.12708): a "
           "module of two dies has 752 TFLOPS FP16 dense (often rounded to 800), 128 GB, 2 x 1600 GB/s, 784 GB/s both "
           "ways on the unified bus and 400 Gb/s RoCE; a die is a device here and has half of each")
NPU_SMI = ("npu-smi of idle 910B devices: 4175 of 65536 MB in use (arthurchiao.art, GPU notes 4); mindformers' recipes "
           "give MindSpore 58 GB of 64 (max_device_memory)")
ASSUMED = ("matmul_efficiency attention_efficiency memory_efficiency link_efficiency node_latency network_latency "
           "launch_seconds host_memory_bandwidth storage_bandwidth")
DRAWS = ("normal_seconds", "33 M normals by NumPy's Philox took 0.7 s on the machine where this was written")
PANGU = "Pangu Ultra (arXiv:2504.07866) reports an MFU above 50 % of a dense model on 8,192 Ascend NPUs"

ATLAS_A2 = Hardware(
    name="atlas800t-a2", title="Atlas 800T A2, 8 x Ascend 910B3 64 GB", form="fused", devices_per_node=8,
    memory=64 * GIB, reserved=6 * GIB, peak_flops=313e12, memory_bandwidth=1600 * GB, node_bandwidth=196 * GB,
    pair_bandwidth=28 * GB, network_bandwidth=25 * GB, host_bandwidth=31.5 * GB, host_memory_bandwidth=10 * GB,
    storage_bandwidth=2 * GB, matmul_efficiency=0.65, attention_efficiency=0.45, memory_efficiency=0.7,
    link_efficiency=0.8, node_latency=15e-6, network_latency=30e-6, launch_seconds=12e-6, normal_seconds=2.1e-8,
    sources=(("peak_flops memory memory_bandwidth node_bandwidth pair_bandwidth network_bandwidth host_bandwidth "
              "devices_per_node", SPEC_A2), ("reserved", NPU_SMI), DRAWS, (ASSUMED, f"{OURS}. {PANGU}")))

ATLAS_A3 = dataclasses.replace(
    ATLAS_A2, name="atlas900-a3", title="Atlas 900 A3 SuperPoD, nodes of 8 x Ascend 910C = 16 dies of 64 GB",
    devices_per_node=16, peak_flops=376e12, node_bandwidth=196 * GB, pair_bandwidth=196 * GB,
    network_bandwidth=25 * GB,
    sources=(("peak_flops memory memory_bandwidth node_bandwidth pair_bandwidth network_bandwidth devices_per_node",
              SPEC_A3), ("reserved host_bandwidth", f"as Atlas 800T A2: {NPU_SMI}"), DRAWS,
             (ASSUMED, f"{OURS}. {PANGU}")))

H100 = dataclasses.replace(
    ATLAS_A2, name="h100", title="8 x NVIDIA H100 SXM 80 GB, for comparison: mindglm does not run there",
    memory=80 * GIB, reserved=4 * GIB, peak_flops=989.4e12, memory_bandwidth=3350 * GB, node_bandwidth=450 * GB,
    pair_bandwidth=450 * GB, network_bandwidth=50 * GB, host_bandwidth=64 * GB, launch_seconds=8e-6,
    sources=(("peak_flops memory memory_bandwidth node_bandwidth pair_bandwidth network_bandwidth host_bandwidth",
              "NVIDIA H100 datasheet, SXM: 989.4 TFLOPS BF16 dense, 80 GB, 3.35 TB/s, NVLink 900 GB/s both ways, "
              "PCIe 5 x16; 400 Gb/s InfiniBand a GPU as in DGX H100"), DRAWS, (f"reserved {ASSUMED}", OURS)))


def cpu(memory: float | None = None) -> Hardware:
    """The machine this runs on: two processes on its cores. memory: of each process; default half of the machine's."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return dataclasses.replace(
        ATLAS_A2, name="cpu", title="this machine's CPU, float32, two processes", form="composed", devices_per_node=2,
        memory=total / 2 if memory is None else memory, reserved=0.5 * GB, peak_flops=35e9, memory_bandwidth=12 * GB,
        node_bandwidth=1 * GB, pair_bandwidth=1 * GB, network_bandwidth=0.12 * GB, host_bandwidth=8 * GB,
        host_memory_bandwidth=4 * GB, storage_bandwidth=0.5 * GB, matmul_efficiency=0.9, attention_efficiency=0.9,
        memory_efficiency=0.7, link_efficiency=1.0, node_latency=1e-3, network_latency=8e-3, launch_seconds=10e-6,
        sources=(("memory", "the operating system"),
                 ("peak_flops memory_bandwidth node_bandwidth pair_bandwidth network_bandwidth node_latency reserved "
                  f"host_bandwidth {ASSUMED}",
                  "fitted to the compiled steps of recipes/nano on two x86-64 cores, a worker on each: forward and "
                  "backward of the AR generator 0.26 s, of the DiT 0.15 s; measure your own"), DRAWS))


NAMES = ("atlas800t-a2", "atlas900-a3", "h100", "cpu")


def load(name_or_file: str) -> Hardware:
    """The machine of that name, or that of a YAML file of figures. UserError for anything else, all faults at once."""
    if name_or_file in NAMES:
        return _named(name_or_file)
    path = Path(name_or_file)
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"hardware {name_or_file!r} is unknown; expected one of {', '.join(NAMES)}, or a .yaml file "
                        "of measured figures such as {base: atlas800t-a2, matmul_efficiency: 0.6}")
    return _from_file(path)


def _named(name: str) -> Hardware:
    return cpu() if name == "cpu" else next(each for each in (ATLAS_A2, ATLAS_A3, H100) if each.name == name)


def _from_file(path: Path) -> Hardware:
    import yaml

    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(given, dict) or given.get("base") not in NAMES:
        raise UserError(f"{path}: expected figures by name with `base:` one of {', '.join(NAMES)}")
    base = _named(given.pop("base"))
    numbers = {field.name for field in dataclasses.fields(Hardware) if field.type in (int, float)}
    figures = {name: _number(value) for name, value in given.items()}
    faults = [f"{name}: given {given[name]!r}, expected {_expected(name)}" if name in numbers else
              f"{name} is no figure; expected one of {', '.join(sorted(numbers))}"
              for name, value in figures.items() if name not in numbers or not _possible(name, value)]
    if faults:
        raise UserError("\n".join(f"{path}: {fault}" for fault in faults))
    if "devices_per_node" in figures:
        figures["devices_per_node"] = int(figures["devices_per_node"])
    sources = ((" ".join(given), f"measured: {path}"), *base.sources) if given else base.sources
    return dataclasses.replace(base, **figures, title=f"{base.title}, with figures of {path}", sources=sources)


def _number(value: object) -> float:
    """NaN for what is none. YAML 1.1 takes 3e9 and 354.0e12, which have no sign behind the e, for text."""
    if isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _possible(name: str, value: float) -> bool:
    return value > 0 and math.isfinite(value) and not (name.endswith("_efficiency") and value > 1) and (
        name != "devices_per_node" or value.is_integer())


def _expected(name: str) -> str:
    if name == "devices_per_node":
        return "a whole number of at least 1"
    return "a share above 0 and at most 1" if name.endswith("_efficiency") else "a finite number above 0"
