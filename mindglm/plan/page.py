"""The plan as a page: one HTML file with the schedule (who computes what when) and the memory drawn."""

import html
from pathlib import Path

from mindglm.errors import UserError
from mindglm.plan import text
from mindglm.plan.planner import Plan, played
from mindglm.plan.simulation import Played, Span
from mindglm.plan.text import MEMORY_COLUMNS, WORDS

WIDTH, LEFT, ROW = 1080, 92, 26
UNIT_COLOURS = {"F": ("#4c78a8", "#7ba3cc"), "B": ("#e08a3c", "#f0b27a"), "W": ("#5d9e52", "#8fc285")}
"""By kind; the second tone is for every second chunk."""
UNIT_WORDS = {"F": "forward", "B": "backward", "W": "gradient of the weights"}
MEMORY_COLOURS = dict(zip(MEMORY_COLUMNS, (
    "#4c78a8", "#72b7b2", "#54a24b", "#e08a3c", "#eeca3b", "#b279a2", "#bab0ac",
)))
MOST_UNITS = 48
"""Forwards of a rank that are drawn; a longer schedule is drawn as a shorter one."""

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 70rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p.note { color: #555; font-size: .93rem; } .bad { color: #b3261e; font-weight: 600; } .good { font-weight: 600; }
pre { background: #f5f5f3; padding: .8rem; overflow-x: auto; font-size: .82rem; }
svg { display: block; width: 100%; height: auto; margin: .4rem 0; } svg text { font: 12px system-ui, sans-serif; }
.key { font-size: .9rem; margin: .3rem 0; } .key span { white-space: nowrap; margin-right: 1.1rem; }
.key i { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .35em; }
"""


def write(plan: Plan, name: str, path: str) -> None:
    """Write the page. UserError when the file cannot be written."""
    try:
        Path(path).write_text(page(plan, name), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: the page cannot be written: {error}") from error


def page(plan: Plan, name: str) -> str:
    """The whole document."""
    verdict = text.verdict(plan)
    mark = "good" if plan.fits else "bad"
    sections = [
        f"<h1>Plan of {html.escape(name)}</h1>",
        f"<p>{plan.layout.devices} devices, {plan.nodes} node(s) of {html.escape(plan.hardware.title)}; "
        f"{html.escape(plan.layout.described())}.</p>",
        f'<p class="{mark}">{html.escape(verdict)}</p>',
        f"<h2>A step: {plan.time.total:.3f} s, planned and not measured</h2>{step_bar(plan)}",
        _schedule(plan),
        f"<h2>Memory of a device, by stage</h2>{memory_bars(plan)}",
        '<p class="note">Bars: the moment of the backward pass at which most is kept. Numbers: the peak, which may '
        "also be that of the update. The dashed line is what a device has.</p>",
        f"<h2>In words</h2><pre>{html.escape(text.told(plan, name))}</pre>",
    ]
    return ('<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
            f'content="width=device-width, initial-scale=1"><title>Plan of {html.escape(name)}</title>'
            f"<style>{STYLE}</style></head><body>\n" + "\n".join(sections) + "\n</body></html>\n")


def _schedule(plan: Plan) -> str:
    layout = plan.layout
    if layout.stages == 1:
        return ""
    shown = min(layout.micro_batches, _drawn(layout.parts, layout.stages))
    step = played(plan, draw=True, micro_batches=shown)
    kinds = [kind for kind in UNIT_COLOURS if any(span.kind == kind for span in step.spans)]
    note = f"All {shown} micro-batches." if shown == layout.micro_batches else (
        f"Drawn with {shown} of the {layout.micro_batches} micro-batches: the pattern in the middle repeats, so "
        "waiting looks larger here than it is.")
    return (f"<h2>The schedule: {html.escape(layout.schedule)}, ranks wait for {plan.bubble:.1%} of its time</h2>"
            + key([(UNIT_WORDS[kind], UNIT_COLOURS[kind][0]) for kind in kinds] + [("waiting", "#f1f1ef")])
            + gantt(step) + f'<p class="note">{note} Numbers are micro-batches'
            + (", the lighter tone is every second chunk of a rank." if layout.chunks > 1 else ".") + "</p>")


def _drawn(parts: int, stages: int) -> int:
    """Whole groups of as many micro-batches as there are stages."""
    return max(MOST_UNITS // parts, 2) * stages


def key(entries) -> str:
    """What the colours mean."""
    spans = "".join(f'<span><i style="background:{colour}"></i>{html.escape(word)}</span>' for word, colour in entries)
    return f'<div class="key">{spans}</div>'


def gantt(step: Played) -> str:
    """Rows of ranks, time to the right."""
    ranks, scale = len(step.busy), (WIDTH - LEFT - 8) / step.seconds
    height = ranks * ROW + 34
    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="schedule by rank">']
    for rank in range(ranks):
        top = rank * ROW
        idle = 1 - step.busy[rank] / step.seconds
        parts.append(f'<text x="0" y="{top + 17}">stage {rank}</text>'
                     f'<text x="{LEFT - 8}" y="{top + 17}" text-anchor="end" fill="#777">{idle:.0%}</text>'
                     f'<rect x="{LEFT}" y="{top + 2}" width="{WIDTH - LEFT - 8}" height="{ROW - 4}" fill="#f1f1ef"/>')
    parts += [_bar(span, scale) for span in step.spans]
    for i in range(6):
        x = LEFT + (WIDTH - LEFT - 8) * i / 5
        anchor = "end" if i == 5 else "middle" if i else "start"
        parts.append(f'<text x="{x:.1f}" y="{height - 12}" text-anchor="{anchor}" fill="#555">'
                     f"{text.seconds(step.seconds * i / 5)}</text>")
    parts.append(f'<text x="{LEFT - 8}" y="{height - 12}" text-anchor="end" fill="#777">waits</text></svg>')
    return "".join(parts)


def _bar(span: Span, scale: float) -> str:
    x, width, top = LEFT + span.start * scale, (span.end - span.start) * scale, span.rank * ROW + 2
    what = f"{UNIT_WORDS[span.kind]}, micro-batch {span.micro_batch}, chunk {span.chunk}"
    colour = UNIT_COLOURS[span.kind][span.chunk % 2]
    label = str(span.micro_batch)
    shown = f'<text x="{x + width / 2:.2f}" y="{top + 15}" text-anchor="middle" fill="#fff">{label}</text>' \
        if width > 8 * len(label) + 2 else ""
    return (f'<g><title>{what}</title><rect x="{x:.2f}" y="{top}" width="{max(width - 0.4, 0.3):.2f}" '
            f'height="{ROW - 4}" fill="{colour}"/>{shown}</g>')


def memory_bars(plan: Plan) -> str:
    """A bar a place in the pipeline, its parts in the order of the text's columns."""
    longest = max(plan.hardware.memory, plan.peak) * 1.08
    scale, height = (WIDTH - LEFT - 8) / longest, len(plan.memory) * ROW + 30
    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="memory by stage">']
    for place, rank in enumerate(plan.memory):
        x, top = float(LEFT), place * ROW + 2
        parts.append(f'<text x="0" y="{top + 15}">stage {place}</text>')
        for column in MEMORY_COLUMNS:
            value = getattr(rank, column)
            parts.append(f'<g><title>{column}: {text.size(value)}</title><rect x="{x:.2f}" y="{top}" '
                         f'width="{value * scale:.2f}" height="{ROW - 4}" fill="{MEMORY_COLOURS[column]}"/></g>')
            x = x + value * scale
        inside = x + 80 > WIDTH
        parts.append(f'<text x="{x - 6 if inside else x + 6:.2f}" y="{top + 15}" '
                     f'text-anchor="{"end" if inside else "start"}">{text.size(rank.peak)}</text>')
    limit, bottom = LEFT + plan.hardware.memory * scale, len(plan.memory) * ROW
    parts.append(f'<line x1="{limit:.1f}" x2="{limit:.1f}" y1="0" y2="{bottom}" stroke="#b3261e" stroke-width="1.5" '
                 f'stroke-dasharray="5 4"/><text x="{limit:.1f}" y="{bottom + 18}" text-anchor="middle" fill="#b3261e">'
                 f"{text.size(plan.hardware.memory)}</text></svg>")
    return key(list(MEMORY_COLOURS.items())) + "".join(parts)


def step_bar(plan: Plan) -> str:
    """The terms of a step side by side."""
    terms = [(name, value) for name, value in plan.time.terms().items() if value > 0]
    scale, x = WIDTH / plan.time.total, 0.0
    colours = dict(zip(WORDS, ("#4c78a8", "#dcdcd8", "#b279a2", "#54a24b", "#eeca3b", "#bab0ac")))
    parts = [f'<svg viewBox="0 0 {WIDTH} 30" role="img" aria-label="terms of a step">']
    for name, value in terms:
        parts.append(f'<g><title>{WORDS[name]}: {text.seconds(value)}</title><rect x="{x:.2f}" y="2" '
                     f'width="{value * scale:.2f}" height="24" fill="{colours[name]}"/></g>')
        x = x + value * scale
    labels = [(f"{WORDS[name]} {text.seconds(value)}, {value / plan.time.total:.1%}", colours[name])
              for name, value in terms]
    return key(labels) + "".join(parts) + "</svg>"
