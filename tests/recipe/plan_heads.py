"""The plan in the head of each full-size recipe, taken from the planner.

    python -m tests.recipe.plan_heads        # writes it anew, after a change of a layout or of the planner
"""

import re
import textwrap
from pathlib import Path

from mindglm import recipe
from mindglm.models import workload
from mindglm.plan import hardware, layout, planner
from tests.recipe.shipped import RECIPES

FULL_SIZE = [path for path in RECIPES if "glm_image" in path.parts]
BEGIN = "# Plan"
TERMS = {"compute": "computing", "bubble": "pipeline bubble", "reduction": "summing gradients", "optimizer": "update",
         "average": "moving average", "data": "waiting for data"}
GIB = 2**30


def planned(path: Path) -> planner.Plan:
    """The plan of a recipe on Atlas 800T A2."""
    loaded, machine = recipe.load(path), hardware.load("atlas800t-a2")
    return planner.plan(workload.of_recipe(loaded, machine.form), layout.of_recipe(loaded), machine)


def roomy(plan: planner.Plan) -> bool:
    """Whether it leaves a tenth of the memory free and keeps every pipeline within a node."""
    return plan.peak < 0.9 * plan.hardware.memory and plan.layout.stages <= plan.hardware.devices_per_node


def head(plan: planner.Plan) -> str:
    """The comment that says what is planned."""
    terms = [f"{TERMS[name]} {seconds:.2f}" for name, seconds in plan.time.terms().items() if seconds >= 0.005]
    hours = plan.run_seconds / 3600
    lasts = f"{hours / 24:.1f} days" if hours > 48 else f"{hours:.1f} hours"
    text = (f"Plan, not measured (`mindglm plan` of this file, Atlas 800T A2): {plan.layout.devices} devices, the "
            f"fullest takes {plan.peak / GIB:.1f} of {plan.hardware.memory / GIB:.0f} GiB; a step lasts "
            f"{plan.time.total:.2f} s ({', '.join(terms)}); MFU {plan.mfu:.1%}, {plan.images_per_second:,.0f} pictures "
            f"a second; the run lasts {lasts}. Layout: the simplest of the fastest that `mindglm plan --search` "
            "finds to fit with a tenth of the memory to spare and a pipeline within a node.")
    return textwrap.fill(text, 118, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False) + "\n"


def written(text: str) -> str:
    """The plan that stands in a recipe."""
    begin = text.index(BEGIN)
    lines = text[begin:].splitlines(keepends=True)
    count = next(i for i, line in enumerate(lines) if line.strip() in ("#", ""))
    return "".join(lines[:count])


def figures(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?", text)]


def words(text: str) -> str:
    return " ".join(re.sub(r"\d[\d,]*(?:\.\d+)?", "N", text.replace("#", " ")).split())


def main() -> None:
    for path in FULL_SIZE:
        text = path.read_text()
        path.write_text(text.replace(written(text), head(planned(path)), 1))


if __name__ == "__main__":
    main()
