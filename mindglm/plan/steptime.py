"""How long a step takes, term by term; planned from a machine's figures, never measured."""

from dataclasses import dataclass

from mindglm.plan import simulation
from mindglm.plan.hardware import Hardware
from mindglm.plan.layout import Layout
from mindglm.plan.memory import buckets, owned
from mindglm.plan.workload import Sample, Unit, Work, Workload, mean

FLOAT = 4
LONG_TABLE = 8192
"""Forwards of a table above which its length is extrapolated from a shorter one."""
ADAMW_BYTES = 28
"""Read and written by AdamW for one element: gradient, master and two moments in, the latter three out."""
SCALING_BYTES = 8
"""The gradient is scaled by the clip factor into a copy first."""
AVERAGE_BYTES = 32
"""Read and written for one element by the moving average's three NumPy passes."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step, by what the busiest rank spends them on; they sum to `total`."""

    compute: float
    """Forward, backward and recomputation of the busiest place in the pipeline."""
    recompute: float
    """How much of `compute` is recomputation."""
    launch_bound: float
    """How much of `compute` the device waits for the host to launch kernels."""
    bubble: float
    """Waiting for other places: the schedule's bubble, uneven stages and transfers between stages."""
    transfers: float
    """How much of `bubble` is there because transfers between stages take time."""
    reduction: float
    """Sums of gradients over data-parallel ranks, as far as no backward hides them."""
    optimizer: float
    """Update, and with ZeRO-1 fetching the others' part of the weights."""
    gathering: float
    """How much of `optimizer` is the fetching."""
    average: float
    """The moving average of the weights, on the host."""
    data: float
    """Making the next batch, as far as the step does not hide it."""
    host_data: float
    """What making the next batch takes the host, beside the step."""
    waiting: float
    """Share of all ranks' time in the schedule's table in which they wait: its bubble."""

    @property
    def total(self) -> float:
        return (self.compute + self.bubble + self.reduction + self.optimizer + self.average + self.data)

    def terms(self) -> dict[str, float]:
        """By name, those that sum to the total."""
        names = ("compute", "bubble", "reduction", "optimizer", "average", "data")
        return {name: getattr(self, name) for name in names}


def work_seconds(work: Work, batch: int, hardware: Hardware) -> tuple[float, float]:
    """(seconds on the device, seconds of them for which the host's launches are the limit)."""
    device = batch * (work.linear / (hardware.peak_flops * hardware.matmul_efficiency)
                      + work.attention / (hardware.peak_flops * hardware.attention_efficiency)
                      + work.moved / (hardware.memory_bandwidth * hardware.memory_efficiency))
    host = work.launches * hardware.launch_seconds
    return max(device, host), max(0.0, host - device)


def collective_seconds(size: float, layout: Layout, hardware: Hardware, both_ways: bool) -> float:
    """Sum of `size` bytes over the data-parallel ranks and the result everywhere; half of it: both_ways False.

    Ranks of one stage that share a node first reduce among themselves, each a part; the parts then travel between
    nodes, each over its own device's port. Rings: every link carries (n - 1) / n of the bytes each way.
    """
    n, per_node = layout.data_parallel, hardware.devices_per_node
    if n == 1:
        return 0.0
    local = min(n, max(1, per_node // layout.stages))
    nodes = -(-n // local)
    inside = size * (local - 1) / local / (hardware.node_bandwidth * hardware.link_efficiency)
    outside = size / local * (nodes - 1) / nodes / (hardware.network_bandwidth * hardware.link_efficiency)
    latency = (local - 1) * hardware.node_latency + (nodes - 1) * hardware.network_latency
    return (inside + outside + latency) * (2 if both_ways else 1)


def stage_seconds(workload: Workload, sample: Sample, layout: Layout, ranges, hardware: Hardware):
    """(Costs of the stages, seconds of recomputation by stage, seconds bound by launches by stage)."""
    batch = layout.micro_batch(workload)
    forward, backward, again, bound = [], [], [], []
    spent: dict[int, tuple] = {}  # layers are alike: the same unit's figures are looked up
    for start, stop in ranges:
        sums = [0.0, 0.0, 0.0, 0.0]
        for number in range(start, stop):
            unit = sample.units[number]
            recomputed = unit.can_recompute and layout.recomputes(number)
            key = hash((unit.forward, unit.backward, recomputed))
            if key not in spent:
                spent[key] = _unit_seconds(unit, recomputed, batch, hardware)
            sums = [a + b for a, b in zip(sums, spent[key])]
        for found, value in zip((forward, backward, again, bound), sums):
            found.append(value)
    crossings = [transfer_seconds(message_bytes(sample, stop - 1, batch, workload.weight_bytes), part, layout, hardware)
                 for part, (_, stop) in enumerate(ranges[:-1])]
    return simulation.Costs(tuple(forward), tuple(backward), tuple(crossings)), again, bound


def _unit_seconds(unit: Unit, recomputed: bool, batch: int, hardware: Hardware) -> tuple[float, ...]:
    forward, waited = work_seconds(unit.forward, batch, hardware)
    backward, waited_back = work_seconds(unit.backward, batch, hardware)
    extra = forward if recomputed else 0.0
    return forward, backward + extra, extra, waited * (2 if recomputed else 1) + waited_back


def message_bytes(sample: Sample, unit: int, batch: int, weight_bytes: int) -> int:
    """What one micro-batch sends, each way, over the boundary behind unit number `unit`."""
    return sample.units[unit].sent * batch * weight_bytes


def transfer_seconds(size: int, part: int, layout: Layout, hardware: Hardware) -> float:
    """Of one message of `size` bytes over the boundary behind part number `part` of the model."""
    if layout.stages == 1:
        return 0.0
    place = part % layout.stages
    next_place = (place + 1) % layout.stages
    inside = hardware.devices_per_node % layout.stages == 0 or (
        layout.stages % hardware.devices_per_node == 0
        and place // hardware.devices_per_node == next_place // hardware.devices_per_node)
    rate = hardware.pair_bandwidth if inside else hardware.network_bandwidth
    latency = hardware.node_latency if inside else hardware.network_latency
    return latency + size / (rate * hardware.link_efficiency)


def of_sample(workload: Workload, sample: Sample, layout: Layout, hardware: Hardware, ranges,
              quick: bool = False) -> StepTime:
    """A step of micro-batches of one size. quick: by simulation.seconds, for a search."""
    costs, again, bound = stage_seconds(workload, sample, layout, ranges, hardware)
    p, m, v = layout.stages, layout.micro_batches, layout.chunks
    work = [m * sum(costs.forward[place::p] + costs.backward[place::p]) for place in range(p)]
    busiest = max(range(p), key=lambda place: work[place])
    if p == 1:
        length = unhindered = work[0]
    elif quick or m * layout.parts > LONG_TABLE:
        length = simulation.seconds(layout.schedule, p, m, v, costs)
        unhindered = length
    else:
        length = simulation.play(layout.schedule, p, m, v, costs).seconds
        instant = simulation.Costs(costs.forward, costs.backward)
        unhindered = simulation.play(layout.schedule, p, m, v, instant).seconds
    reduction, update, gathering, average = after_backward(workload, layout, hardware, ranges, costs)
    data = _data_seconds(workload, sample, layout, hardware)
    spent = length + reduction + update + average
    return StepTime(
        compute=work[busiest], recompute=m * sum(again[busiest::p]), launch_bound=m * sum(bound[busiest::p]),
        bubble=length - work[busiest], transfers=max(0.0, length - unhindered), reduction=reduction, optimizer=update,
        gathering=gathering, average=average, data=max(0.0, data - spent),
        host_data=data,
        waiting=1 - sum(work) / (p * length) if length else 0.0)


def after_backward(workload: Workload, layout: Layout, hardware: Hardware, ranges, costs) -> tuple[float, ...]:
    """(reduction that nothing hides, update, gathering within it, moving average) of the largest place."""
    found = []
    for place in range(layout.stages):
        tensors = [tensor for start, stop in ranges[place::layout.stages] for unit in workload.units[start:stop]
                   for tensor in unit.tensors]
        sizes = buckets(tensors, workload.no_decay)
        count, state = sum(sizes), owned(sizes, layout.data_parallel if layout.optimizer_shard else 1)
        size = count * workload.reduce_bytes
        reduction = collective_seconds(size, layout, hardware, both_ways=not layout.optimizer_shard)
        if layout.data_parallel > 1:
            reduction = reduction + (len(sizes) - 1) * hardware.launch_seconds
        if not workload.compiled and not layout.runs_stages and not layout.optimizer_shard:
            hidden = max(0.0, sum(costs.backward) * (1 - max(sizes) / count))
            reduction = max(reduction * max(sizes) / count, reduction - hidden)
        moved = state * (ADAMW_BYTES + (SCALING_BYTES if hardware.form == "fused" else 0))
        update = moved / (hardware.memory_bandwidth * hardware.memory_efficiency)
        gathering = collective_seconds(count * workload.weight_bytes, layout, hardware, both_ways=False) \
            if layout.optimizer_shard else 0.0
        average = 0.0
        if workload.keeps_average:
            average = state * AVERAGE_BYTES / hardware.host_memory_bandwidth
            if hardware.form == "fused":
                average = average + state * FLOAT / hardware.host_bandwidth
        found.append((reduction, update + gathering, gathering, average))
    return max(found, key=sum)


def _data_seconds(workload: Workload, sample: Sample, layout: Layout, hardware: Hardware) -> float:
    """What a rank's host needs to make its micro-batches; a thread does it beside the step before."""
    samples = layout.micro_batch(workload) * layout.micro_batches
    return samples * (sample.host_bytes / (hardware.storage_bandwidth / hardware.devices_per_node)
                      + sample.host_normals * hardware.normal_seconds)


def of_layout(workload: Workload, layout: Layout, hardware: Hardware, quick: bool = False) -> StepTime:
    """The mean step over the sizes of sample."""
    ranges = layout.ranges(workload)
    steps = [of_sample(workload, sample, layout, hardware, ranges, quick) for sample in workload.samples]
    by_sample = dict(zip(map(id, workload.samples), steps))
    return StepTime(**{name: mean(workload.samples, lambda sample: getattr(by_sample[id(sample)], name))
                       for name in StepTime.__dataclass_fields__})
