"""A plan in words: what `mindglm plan` prints, and the same as numbers for `--json`."""

import dataclasses

from mindglm.plan.memory import RankMemory
from mindglm.plan.planner import DAY, Knob, Plan, knobs

MEMORY_COLUMNS = ("parameters", "optimizer", "gradients", "activations", "working", "communication", "reserved")
WORDS = {
    "compute": "computing", "bubble": "waiting for other stages", "reduction": "summing gradients over ranks",
    "optimizer": "updating the weights", "average": "the moving average, on the host", "data": "waiting for data",
}


def size(count: float) -> str:
    """Bytes in the unit that suits them."""
    for unit, of in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= of:
            return f"{count / of:.3g} {unit}" if count < 1000 * of else f"{count / of:,.0f} {unit}"
    return f"{count:.0f} bytes"


def seconds(value: float) -> str:
    """A time in the unit that suits it."""
    return f"{value:.3f} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def told(plan: Plan, name: str) -> str:
    """The whole report. name: of the recipe."""
    parts = [_head(plan, name), _units(plan), memory_table(plan), verdict(plan), _step(plan), _run(plan),
             _next(plan, knobs(plan)), _sources(plan)]
    return "\n\n".join(part for part in parts if part)


def _head(plan: Plan, name: str) -> str:
    workload, layout = plan.workload, plan.layout
    sizes = ", ".join(f"{sample.title} ({sample.tokens} tokens{_share(sample.share)})" for sample in workload.samples)
    lines = [f"plan of {name} on {layout.devices} devices, {plan.nodes} node(s) of {plan.hardware.title}",
             f"  {layout.described()}; micro-batches of {layout.micro_batch(workload)}, global batch "
             f"{workload.global_batch}",
             f"  {workload.parameters:,} trained parameters; samples {sizes}"]
    lines += [f"  assumed: {note}" for note in workload.notes]
    return "\n".join(lines)


def _share(share: float) -> str:
    return "" if share == 1 else f", {share:.0%}"


def _units(plan: Plan) -> str:
    if plan.layout.parts == 1:
        return ""
    names, lines = [unit.name for unit in plan.workload.units], []
    cut = plan.workload.samples[0].cut_flops
    for place in range(plan.layout.stages):
        mine = plan.ranges[place::plan.layout.stages]
        held = "; ".join(names[a] if b - a == 1 else f"{names[a]} to {names[b - 1]}" for a, b in mine)
        share = sum(sum(cut[a:b]) for a, b in mine) / sum(cut) * plan.layout.stages
        lines.append(f"  stage {place}: {held} ({share:.2f} of an even share of the work)")
    return "\n".join(lines)


def memory_table(plan: Plan) -> str:
    """Memory by place in the pipeline, in GiB or MiB."""
    unit, of = ("GiB", 2**30) if plan.peak >= 2**30 else ("MiB", 2**20)
    rows = [("stage", *MEMORY_COLUMNS, "peak", "in flight")]
    for place, rank in enumerate(plan.memory):
        rows.append((str(place), *(f"{getattr(rank, column) / of:.2f}" for column in MEMORY_COLUMNS),
                     f"{rank.peak / of:.2f}" + ("" if rank.backward_peak >= rank.update_peak else " (update)"),
                     str(rank.in_flight)))
    return f"memory of a device in {unit} (it has {plan.hardware.memory / of:,.0f})\n" + aligned(rows)


def aligned(rows) -> str:
    """Rows of texts in columns, all but the first to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  " + "  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in
                                      enumerate(zip(row, widths))).rstrip() for row in rows)


def fullest(plan: Plan) -> tuple[int, RankMemory]:
    """(place, memory) of the fullest device."""
    return max(enumerate(plan.memory), key=lambda item: item[1].peak)


def verdict(plan: Plan) -> str:
    """Whether it fits, and how closely."""
    place, rank = fullest(plan)
    room = plan.hardware.memory - rank.peak
    said = f"fits: stage {place} is the fullest and has {size(room)} left" if room >= 0 else \
        f"DOES NOT FIT: stage {place} needs {size(-room)} more than there are"
    if rank.average:
        said = said + f"; the moving average takes {size(rank.average)} more a device, on the host"
    return said


def _step(plan: Plan) -> str:
    time = plan.time
    details = {
        "compute": [("recomputation", time.recompute), ("the device waits for kernel launches", time.launch_bound)],
        "bubble": [("transfers between stages", time.transfers)],
        "optimizer": [("fetching the others' part of the weights", time.gathering)],
    }
    rows = []
    for name, value in time.terms().items():
        parts = [(WORDS[name], value), *((f"  of it {words}", part) for words, part in details.get(name, ()))]
        rows += [(words, seconds(part), f"{part / time.total:.1%}") for words, part in parts if part > 0]
    lines = [f"a step, planned and not measured: {seconds(time.total)}", aligned(rows)]
    lines.append(f"  the next batch is made beside it in {seconds(time.host_data)} of the host's time")
    if plan.layout.stages > 1:
        lines.append(f"  schedule {plan.layout.schedule}: ranks wait for {plan.bubble:.1%} of its time; messages of "
                     f"{size(max(plan.messages()))} between stages")
        if plan.layout.schedule == "zb_h1":
            lines.append("  zb_h1 is planned only: mindglm train does not run it")
    lines.append(f"  {flops(plan.model_flops)} by the model ({flops(plan.executed_flops)} executed), MFU "
                 f"{plan.mfu:.1%}; {plan.images_per_second:,.2f} images and {plan.tokens_per_second:,.0f} tokens "
                 "a second")
    return "\n".join(lines)


def flops(count: float) -> str:
    """Floating point operations in the unit that suits them."""
    unit, of = next((pair for pair in (("PFLOP", 1e15), ("TFLOP", 1e12)) if count >= pair[1]), ("GFLOP", 1e9))
    return f"{count / of:,.1f} {unit}"


def _run(plan: Plan) -> str:
    workload = plan.workload
    return (f"the run of {workload.steps:,} steps: {plan.run_seconds / DAY:.2f} days, {plan.device_hours:,.1f} "
            f"device-hours; a checkpoint is {size(plan.checkpoint_bytes)} ({workload.checkpoints_kept} are kept) and "
            f"takes {seconds(plan.checkpoint_seconds)} every {workload.checkpoint_interval} steps")


def _next(plan: Plan, found: list[Knob]) -> str:
    name, value = max(plan.time.terms().items(), key=lambda term: term[1])
    largest = max(MEMORY_COLUMNS, key=lambda column: getattr(fullest(plan)[1], column))
    lines = [f"the step is bound by {WORDS[name]} ({value / plan.time.total:.0%}), memory by {largest}"]
    if not found:
        return lines[0] + "; no single change of the recipe helps by 1 %"
    if not plan.fits and not found[0].plan.fits:
        lines.append("  no single change is enough: look for a layout by --search, or take more nodes")
    for knob in found[:3]:
        after = knob.plan
        effect = (f"step {seconds(plan.time.total)} -> {seconds(after.time.total)} ({-knob.gain(plan):+.1%}), fullest "
                  f"device {size(plan.peak)} -> {size(after.peak)}" + ("" if after.fits else ", still too much"))
        changed = "; changes what is computed" if knob.changes_numerics else ""
        if knob.planned_only:
            changed = changed + "; planned only: mindglm train does not run zb_h1"
        lines.append(f"  next: {knob.keys}\n        {effect}{changed}")
    return "\n".join(lines)


def _sources(plan: Plan) -> str:
    lines = ["figures of the machine"]
    for names, source in plan.hardware.sources:
        values = ", ".join(f"{name} {getattr(plan.hardware, name):.4g}" for name in names.split())
        lines.append(f"  {values}\n    {source}")
    return "\n".join(lines)


def as_numbers(plan: Plan, name: str) -> dict:
    """The plan as plain numbers and texts: bytes, seconds, FLOPs."""
    workload, layout = plan.workload, plan.layout
    return {
        "recipe": name, "planned": True, "hardware": dataclasses.asdict(plan.hardware),
        "layout": {**dataclasses.asdict(layout), "recompute": "all" if layout.recompute is None else
                   sorted(layout.recompute), "devices": layout.devices, "nodes": plan.nodes,
                   "micro_batch": layout.micro_batch(workload), "units": [list(each) for each in plan.ranges]},
        "assumed": list(workload.notes), "parameters": workload.parameters,
        "samples": [{"size": sample.title, "share": sample.share, "tokens": sample.tokens}
                    for sample in workload.samples],
        "memory": [{**dataclasses.asdict(rank), "peak": rank.peak} for rank in plan.memory],
        "fits": plan.fits, "peak": plan.peak,
        "step_seconds": {**dataclasses.asdict(plan.time), "total": plan.time.total},
        "bubble": plan.bubble, "message_bytes": plan.messages(), "model_flops": plan.model_flops,
        "executed_flops": plan.executed_flops, "mfu": plan.mfu, "images_per_second": plan.images_per_second,
        "tokens_per_second": plan.tokens_per_second, "checkpoint_bytes": plan.checkpoint_bytes,
        "checkpoint_seconds": plan.checkpoint_seconds, "run_days": plan.run_seconds / DAY,
        "device_hours": plan.device_hours,
        "next": [{"keys": knob.keys, "step_seconds": knob.plan.time.total, "peak": knob.plan.peak,
                  "fits": knob.plan.fits, "changes_numerics": knob.changes_numerics,
                  "planned_only": knob.planned_only} for knob in knobs(plan)[:5]],
    }
