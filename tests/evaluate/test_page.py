"""Curves, sheets and the page, from figures made up here; no model, no network."""

import json
import re

import numpy as np
import pytest

from mindglm.errors import UserError
from mindglm.evaluate import figures, held_out, quickstart_page, report


def _run(folder, losses):
    folder.mkdir()
    lines = [json.dumps({"step": i + 1, "loss": loss, "grad_norm": 1.0}) for i, loss in enumerate(losses)]
    lines.append(json.dumps({"step": len(losses), "validation_loss": 0.5}))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 99, "lo')  # a line cut by a kill
    return folder


def _flow():
    rng = np.random.default_rng(0)
    return held_out.flow_figures({name: rng.uniform(0.5, 1, (5, 2)) + more for name, more in
                                  (("right", 0), ("other", 1), ("none", 2))}, (100, 900))


def test_metrics_of_a_resumed_run_count_once(tmp_path):
    run = _run(tmp_path / "run", [3.0, None, 2.0])
    with open(run / "metrics.jsonl", "a") as file:
        file.write("\n" + json.dumps({"step": 3, "loss": 1.5}) + "\n")
    train, validation = figures.read_metrics(run)
    assert [(r["step"], r["loss"]) for r in train] == [(1, 3.0), (3, 1.5)]
    assert validation == [{"step": 3, "validation_loss": 0.5}]
    with pytest.raises(UserError, match="no metrics.jsonl"):
        figures.read_metrics(tmp_path)


def test_smoothing_is_a_centred_mean():
    np.testing.assert_allclose(figures.smooth([1, 2, 3, 4, 8], 3), [1.5, 2, 3, 5, 6])
    np.testing.assert_allclose(figures.smooth([1, 2, 3], 1), [1, 2, 3])


def test_sheet_puts_every_picture_in_its_place():
    red, blue = np.full((16, 16, 3), (255, 0, 0), np.uint8), np.full((16, 16, 3), (0, 0, 255), np.uint8)
    sheet = np.asarray(figures.sheet([[red, blue], [blue, red]], ["a", "b"], ["first", "second"], label_width=60))
    assert sheet[22 + 8, 60 + 8].tolist() == [255, 0, 0] and sheet[22 + 8, 60 + 22 + 8].tolist() == [0, 0, 255]
    assert sheet[22 + 22 + 8, 60 + 8].tolist() == [0, 0, 255]
    grid = figures.captioned_grid([red, blue, red], ["one", "two", "three"], 2)
    assert grid.size[0] > 32 and grid.size[1] > 32


def test_tables_escape_what_they_are_given():
    assert "<b>" not in report.table(["x"], [["<b>"]]) and "&lt;b&gt;" in report.table(["x"], [["<b>"]])
    assert report.with_error({"mean": 1.0, "standard_error": None}) == "1.000"


def test_page_is_whole_and_needs_no_network(tmp_path):
    runs = [_run(tmp_path / "ar", [3.0, 2.0]), _run(tmp_path / "dit", [1.0, 0.5])]
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    figures.loss_curves({"AR": runs[0], "DiT": runs[1]}, pictures / "losses.png")
    flow = _flow()
    figures.curves_by_timestep(flow["by_timestep"], flow["timesteps"], {}, pictures / "timesteps.png")
    for name in ("samples", "vae", "codes", "glyphs"):
        figures.sheet([[np.zeros((8, 8, 3), np.uint8)]], ["t"]).save(pictures / f"{name}.png")
    pixels = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3)).astype(np.uint8)
    codes = (np.zeros((3, 2, 2), int), np.ones((3, 1, 2), int))
    nll = (np.full((3, 4), 1.0), np.full((3, 2), 2.5))
    table = {"held_out_samples": 5, "held_out_signs": 2, "seed": 0, "flow_steps": 4, "guidance_scale": 1.5,
             "vae": held_out.vae_figures(pixels, pixels), "ar": held_out.ar_figures(nll, nll, codes, codes, 4),
             "codes": flow, "glyphs": {"codes_given": _flow(), "codes_withheld": _flow()}}
    (tmp_path / "steps.tsv").write_text("ar\t12\tmindglm train <recipe>\n")
    page = quickstart_page.render(table, tmp_path, quickstart_page.read_steps(tmp_path))
    assert page.count("data:image/png;base64,") == 6
    assert "2.500" in page and "mindglm train &lt;recipe&gt;    # 12 s" in page and "OpenMoji" in page
    assert f"{flow['variants']['other']['ratio']:.2f}" in page
    assert not re.findall(r"(?:src|href)=\"(?!data:|https://openmoji.org\"|https://creativecommons.org/)[^\"]*", page)
    json.dumps(table)  # figures.json can be written
    lines = report.markdown(table).splitlines()
    assert len(lines) == 6 and all(line.count("|") == 4 for line in lines)
    assert f"x {flow['variants']['other']['ratio']:.3f}, own better on" in lines[4]


def test_wrong_run_folder_is_refused_before_anything_is_loaded(tmp_path, capsys):
    code = quickstart_page.main(["--model", "m", "--dataset", "d", "--images", "i", "--runs", str(tmp_path),
                                 "--output", str(tmp_path / "out")])
    assert code == 2 and "metrics.jsonl" in capsys.readouterr().err
