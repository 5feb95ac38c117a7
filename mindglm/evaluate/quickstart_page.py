"""The quickstart's last step: held-out figures, pictures, and the page that shows them.

    python -m mindglm.evaluate.quickstart_page --model DIR --dataset DIR --images DIR --runs AR_RUN DIT_RUN --output DIR

Writes OUTPUT/index.html (self-contained), OUTPUT/figures.json and OUTPUT/pictures/*.png.
"""

import argparse
import contextlib
import pathlib
import sys
import time

from mindglm.data.drawing import write_bytes, write_json
from mindglm.errors import exit_code
from mindglm.evaluate import figures, report

CREDITS = (
    'Drawings made from <a href="https://openmoji.org">OpenMoji</a>, the open-source emoji and icon project, licence '
    '<a href="https://creativecommons.org/licenses/by-sa/4.0/">CC BY-SA 4.0</a>; rasterised on coloured grounds. '
    "Pictures on this page that show or derive from them are under the same licence. Captions are Unicode CLDR names. "
    "Signs are drawn with the DejaVu fonts.")
CODE_TITLES = {"right": "its own codes", "other": "another's codes", "none": "no codes"}


@contextlib.contextmanager
def told(what: str, seconds: dict):
    """Says what is being done and how long it took."""
    print(f"  {what} ...", flush=True)
    begun = time.perf_counter()
    yield
    seconds[what] = round(time.perf_counter() - begun, 1)
    print(f"  {what}: {seconds[what]:.1f} s", flush=True)


def run(model, dataset, images, runs, output, seed: int = 0, steps: int = 30, guidance_scale: float = 1.5,
        limit: int = 256) -> dict:
    """Everything; returns what figures.json holds."""
    for folder in runs:
        figures.read_metrics(folder)  # refuse a wrong folder before minutes of work
    output = pathlib.Path(output)
    (output / "pictures").mkdir(parents=True, exist_ok=True)
    seconds: dict = {}
    with told("loading", seconds):
        from mindglm.evaluate.evaluation import load

        evaluation = load(model, dataset, images, output, seed, steps, guidance_scale, limit)
    table = {"held_out_samples": len(evaluation.samples), "held_out_signs": len(evaluation.signs), "seed": seed,
             "flow_steps": steps, "guidance_scale": guidance_scale, "seconds": seconds}
    parts = [("vae", evaluation.vae, evaluation.vae_sheet), ("ar", evaluation.ar, None),
             ("codes", evaluation.codes_matter, evaluation.codes_sheet)]
    if evaluation.other_sign:
        parts.append(("glyphs", evaluation.glyphs_matter, evaluation.glyphs_sheet))
    for key, measure, draw in parts:
        with told(f"{key}: figures", seconds):
            table[key] = measure()
        if draw is not None:
            with told(f"{key}: pictures", seconds):
                draw()
    with told("text to image", seconds):
        evaluation.samples_grid()
    names = ("AR generator", "DiT decoder") if len(runs) == 2 else [pathlib.Path(r).name for r in runs]
    figures.loss_curves(dict(zip(names, runs)), evaluation.picture_path("losses"))
    figures.curves_by_timestep(table["codes"]["by_timestep"], table["codes"]["timesteps"], CODE_TITLES,
                               evaluation.picture_path("timesteps"))
    write_json(output / "figures.json", table, indent=1)
    write_bytes(output / "figures.md", report.markdown(table).encode())
    write_bytes(output / "index.html", render(table, output, read_steps(output)).encode())
    return table


def read_steps(output: pathlib.Path) -> list[tuple[str, str, str]]:
    """(step, seconds, command) lines that launch/quickstart.sh leaves in steps.tsv; none without the file."""
    path = output / "steps.tsv"
    if not path.is_file():
        return []
    rows = [line.split("\t", 2) for line in path.read_text(encoding="utf-8").splitlines()]
    return [tuple(row) for row in rows if len(row) == 3]


def render(table: dict, output: pathlib.Path, steps) -> str:
    """The page from the figures and the pictures that are in OUTPUT/pictures. steps: as `read_steps`."""
    def shown(name: str, alt: str) -> str:
        return report.picture(output / "pictures" / f"{name}.png", alt)

    vae = table["vae"]
    psnr = [["through the VAE", report.with_error(vae["psnr_db"], 2)],
            ["one flat colour, the picture's mean", report.with_error(vae["mean_colour_psnr_db"], 2)]]
    sections = [
        report.section("Text to image", report.note(
            "Prompts the models never saw, evenly taken from the held-out captions, not selected. Image codes from the "
            f"AR generator, {table['flow_steps']} flow steps, guidance {table['guidance_scale']}, seed "
            f"{table['seed']}."),
            shown("samples", "Generated pictures with their prompts")),
        report.section("Training", shown("losses", "Training and validation loss of the AR generator and the DiT")),
        report.section("VAE", report.table(["held-out pictures", "PSNR in dB"], psnr, best=(0,)),
                       shown("vae", "Held-out pictures and their reconstructions")),
        report.section("AR generator: nats per code", report.ar_table(table["ar"]), report.note(
            "Teacher-forced on held-out pictures, lower is better. The unigram columns are what a model scores that "
            "knows only how often each code occurs in training.")),
        _codes_section(table["codes"], shown),
    ]
    if "glyphs" in table:
        sections.append(_glyphs_section(table["glyphs"], shown))
    commands = [f"{command}    # {seconds} s" for _, seconds, command in steps]
    sections.append(report.section("How this page was made", report.commands(["bash launch/quickstart.sh"]),
                                   *([report.note("Its steps:"), report.commands(commands)] if commands else [])))
    lead = (f"A small GLM-Image trained on this machine and judged on {table['held_out_samples']} held-out pictures, "
            f"{table['held_out_signs']} of them signs with a word. Figures are means ± standard errors over samples.")
    return report.page("mindglm quickstart", lead, sections, CREDITS)


def _codes_section(codes: dict, shown) -> str:
    steps = ", ".join(map(str, codes["timesteps"]))
    return report.section(
        "DiT: do the prior codes matter?", report.comparison(codes["variants"], "prior codes"),
        report.note(f"Flow-matching loss on held-out latents; every row sees the same noise at time steps {steps} of "
                    "1000."),
        shown("timesteps", "Flow loss by time step"),
        shown("codes", "The same noise decoded with own, another's and no codes"))


def _glyphs_section(glyphs: dict, shown) -> str:
    return report.section(
        "DiT: do the glyphs matter?", report.note("On held-out signs, with the right prior codes:"),
        report.comparison(glyphs["codes_given"]["variants"], "glyphs"),
        report.note("The same with the prior codes withheld, which training never did alone:"),
        report.comparison(glyphs["codes_withheld"]["variants"], "glyphs"),
        shown("glyphs", "The same noise and codes with different glyphs"))


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mindglm.evaluate.quickstart_page",
                                     description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="finished model folder in the released layout")
    parser.add_argument("--dataset", required=True, help="folder written by mindglm prepare")
    parser.add_argument("--images", required=True, help="the folder mindglm prepare read")
    parser.add_argument("--runs", nargs="+", required=True, help="output_dir of the AR run and of the DiT run")
    parser.add_argument("--output", required=True, help="where index.html, figures.json and pictures/ go")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=30, help="flow steps of the pictures (default 30)")
    parser.add_argument("--guidance-scale", type=float, default=1.5)
    parser.add_argument("--limit", type=int, default=256, help="held-out samples at most (default 256)")
    options = parser.parse_args(argv)

    def command():
        run(**vars(options))
        print(f"wrote {pathlib.Path(options.output) / 'index.html'}")

    return exit_code(command)


if __name__ == "__main__":
    sys.exit(main())
