"""The page: one HTML file with its pictures inside, readable without a network."""

import base64
import html
import pathlib

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, sans-serif; color: #222; background: #fff; }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; }
h2 { font-size: 1.2rem; margin-top: 2.4rem; border-bottom: 1px solid #ddd; }
p.note, td.note, footer { color: #555; } p.note { font-size: .93rem; }
table { border-collapse: collapse; margin: .8rem 0; } th, td { padding: .28rem .8rem .28rem 0; text-align: right; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 2px solid #333; }
tbody tr { border-bottom: 1px solid #e5e5e5; } tr.best td { font-weight: 600; }
img { max-width: 100%; height: auto; display: block; margin: .6rem 0; }
pre { background: #f5f5f3; padding: .8rem; overflow-x: auto; font-size: .88rem; }
.scroll { overflow-x: auto; }
footer { margin-top: 3rem; border-top: 1px solid #ddd; font-size: .9rem; padding: 1rem 0; }
"""


def number(value, digits: int = 3) -> str:
    """A figure for a table cell; None is a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def with_error(figure: dict, digits: int = 3) -> str:
    """mean ± standard error of a `mean_and_error` figure."""
    error = figure["standard_error"]
    return number(figure["mean"], digits) + ("" if error is None else f" ± {error:.{digits}f}")


def table(header, rows, best=()) -> str:
    """An HTML table of escaped texts; rows whose index is in `best` are printed bold."""
    head = "".join(f"<th>{html.escape(str(cell))}</th>" for cell in header)
    lines = []
    for i, row in enumerate(rows):
        mark = ' class="best"' if i in best else ""
        lines.append(f"<tr{mark}>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def note(text: str) -> str:
    """A paragraph that explains a table or picture."""
    return f'<p class="note">{html.escape(text)}</p>'


def picture(path, alt: str) -> str:
    """An <img> that carries the file's bytes."""
    data = base64.b64encode(pathlib.Path(path).read_bytes()).decode()
    return f'<img alt="{html.escape(alt, quote=True)}" src="data:image/png;base64,{data}">'


def section(title: str, *parts: str) -> str:
    return f"<h2>{html.escape(title)}</h2>\n" + "\n".join(parts)


def commands(lines) -> str:
    return "<pre>" + html.escape("\n".join(lines)) + "</pre>"


def page(title: str, lead: str, sections, footer: str) -> str:
    """The whole document. `sections` and `footer` are HTML, title and lead are plain text."""
    return ("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>\n"
            f"<h1>{html.escape(title)}</h1>\n{paragraph(lead)}\n" + "\n".join(sections)
            + f"\n<footer>{footer}</footer>\n</body></html>\n")


# ---- tables of the figures ----

CONDITION_TITLES = {"right": "its own", "other": "another's", "none": "none", "empty": "empty string"}


def comparison(figures: dict, what: str) -> str:
    """Table of a `held_out.paired` comparison with base "right"."""
    rows = []
    for name, figure in figures.items():
        difference = figure.get("minus_right")
        rows.append([CONDITION_TITLES.get(name, name), with_error(figure, 4),
                     "" if difference is None else with_error(difference, 4),
                     "" if difference is None else number(figure["ratio"], 2),
                     "" if difference is None else f"{100 * figure['right_wins']:.0f} %"])
    header = [what, "loss", "more than with its own (paired)", "ratio", "samples where its own wins"]
    return table(header, rows, best=(0,))


def ar_table(figures: dict) -> str:
    """Nats a code of the AR generator beside the unigram figures."""
    rows = []
    for name, figure in figures.items():
        own, other = figure["captions"]["right"], figure["captions"]["other"]
        unigram = figure["unigram"]
        rows.append([name, figure["codes_per_image"], with_error(own), with_error(other), number(unigram["entropy"]),
                     number(unigram["cross_entropy"]), f"{unigram['used']} of {unigram['num_codes']}"])
    header = ["grid", "codes a picture", "AR, own caption", "AR, another's caption", "unigram entropy (training)",
              "unigram cross-entropy (held out)", "codes in use"]
    return table(header, rows)


def markdown(figures: dict) -> str:
    """The held-out figures as one Markdown table: what figures.md holds and the project's README repeats."""
    vae, ar, codes = figures["vae"], figures["ar"]["together"], figures["codes"]["variants"]
    rows = [("VAE, PSNR in dB", with_error(vae["psnr_db"], 2),
             f"one flat colour: {with_error(vae['mean_colour_psnr_db'], 2)}"),
            ("AR generator, nats per code", with_error(ar["captions"]["right"]),
             f"unigram entropy of the training codes: {number(ar['unigram']['entropy'])}; "
             f"another picture's caption: {with_error(ar['captions']['other'])}"),
            ("DiT flow loss, own prior codes", with_error(codes["right"], 4), _others(codes))]
    if "glyphs" in figures:
        glyphs = figures["glyphs"]["codes_given"]["variants"]
        rows.append(("DiT flow loss on signs, own word", with_error(glyphs["right"], 4), _others(glyphs)))
    lines = ["| held out | with what belongs to it | with something else |", "|---|---|---|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows]) + "\n"


def _others(variants: dict) -> str:
    """The other rows of a comparison: mean, ratio and how many samples the right condition wins."""
    return "; ".join(f"{CONDITION_TITLES.get(name, name)}: {with_error(figure, 4)} (x {number(figure['ratio'], 3)}, "
                     f"own better on {100 * figure['right_wins']:.0f} %)"
                     for name, figure in variants.items() if name != "right")
