"""Each command hands its arguments to the room that does the work, under the names that room knows."""

import inspect

import pytest

from mindglm.cli import main as cli
from tests.recipe.helpers import recipe_text


def spy(monkeypatch, module, name):
    """Replaces a function by one that takes the same arguments and notes them."""
    signature = inspect.signature(getattr(module, name))
    calls = []

    def note(*args, **kwargs):
        calls.append(dict(signature.bind(*args, **kwargs).arguments))

    monkeypatch.setattr(module, name, note)
    return calls


def test_train_loads_the_recipe_with_overrides(tmp_path, monkeypatch):
    from mindglm.train import trainer

    path = tmp_path / "r.yaml"
    path.write_text(recipe_text())
    calls = spy(monkeypatch, trainer, "run")
    assert cli.main(["train", str(path), "runner_config.stop_step=7", "seed=3"]) == 0
    loaded, fallback = calls[0].values()
    assert (loaded.runner_config.stop_step, loaded.seed, loaded.trainer.type) == (7, 3, "ar_next_token")
    assert fallback is False and cli.main(["train", str(path), "--fallback"]) == 0 and calls[1]["fallback"] is True


def test_train_refuses_before_anything_starts(tmp_path, monkeypatch, capsys):
    from mindglm.parallel import transport
    from mindglm.train import trainer

    path = tmp_path / "r.yaml"
    path.write_text(recipe_text())
    calls = spy(monkeypatch, trainer, "run"), spy(monkeypatch, transport, "exit_if_scheduler")
    assert cli.main(["train", str(path), "runner_config.stop_step=0"]) == 2
    assert calls == ([], [])
    assert "at least 1" in capsys.readouterr().err


def test_the_scheduler_process_never_comes_to_the_trainer(tmp_path, monkeypatch):
    from mindglm.parallel import transport
    from mindglm.train import trainer

    path = tmp_path / "r.yaml"
    path.write_text(recipe_text())
    order = []
    monkeypatch.setattr(transport, "exit_if_scheduler", lambda: order.append("scheduler"))
    monkeypatch.setattr(trainer, "run", lambda recipe, fallback: order.append("train"))
    assert cli.main(["train", str(path)]) == 0
    assert order == ["scheduler", "train"]


def test_prepare(monkeypatch):
    from mindglm.data import prepare

    calls = spy(monkeypatch, prepare, "run")
    given = [
        "--images",
        "i",
        "--captions",
        "c.jsonl",
        "--model",
        "m",
        "--output",
        "o",
        "--height",
        "128",
        "--width",
        "96",
    ]
    assert cli.main(["prepare", *given]) == 0
    expected = dict(images="i", captions="c.jsonl", model_dir="m", output="o", sizes=[(128, 96)])
    assert calls[0] == {**expected, "held_out": 0.05, "pixels_only": False, "shard_size": 256}
    given = ["--images", "i", "--output", "o", "--height", "32", "--width", "32", "--held-out", "0", "--pixels-only"]
    assert cli.main(["prepare", *given, "--shard-size", "8"]) == 0
    expected = dict(images="i", captions=None, model_dir=None, output="o", sizes=[(32, 32)])
    assert calls[1] == {**expected, "held_out": 0.0, "pixels_only": True, "shard_size": 8}
    assert cli.main("prepare --images i --output o --bucket 96x128 --bucket 64x64".split()) == 0
    assert calls[2]["sizes"] == [(128, 96), (64, 64)], "(height, width) from WIDTHxHEIGHT"


@pytest.mark.parametrize("sizes, told", [
    ("", "no size was given; expected --height and --width, or --bucket"),
    ("--height 32", "no size was given"),
    ("--bucket 32x32 --width 32", "--bucket and --height or --width were given"),
    ("--bucket 32", "given '32', expected WIDTHxHEIGHT in pixels, for instance 768x1344")])
def test_prepare_wants_one_size_or_buckets(sizes, told, capsys):
    try:
        code = cli.main(f"prepare --images i --output o {sizes}".split())
    except SystemExit as end:
        code = end.code
    assert code == 2 and told in capsys.readouterr().err


def test_generate(monkeypatch):
    from mindglm import generate

    calls = spy(monkeypatch, generate, "cli_run")
    assert cli.main(["generate", "--model", "m", "--prompt", "a cat", "--prompt", "a dog", "--output", "x.png"]) == 0
    expected = dict(model="m", prompts=["a cat", "a dog"], height=None, width=None, steps=50, guidance_scale=1.5)
    nothing = {"images": [], "prompt_file": None, "prior_codes": None, "save_prior_codes": None}
    assert calls[0] == {**expected, "seed": 0, "num_images": 1, "output": "x.png", **nothing}
    given = [
        "--height",
        "64",
        "--width",
        "96",
        "--steps",
        "4",
        "--guidance-scale",
        "2",
        "--seed",
        "7",
        "--num-images",
        "3",
    ]
    assert cli.main(["generate", "--model", "m", "--prompt", "a", "--output", "x.png", *given]) == 0
    expected = dict(model="m", prompts=["a"], height=64, width=96, steps=4, guidance_scale=2.0)
    assert calls[1] == {**expected, "seed": 7, "num_images": 3, "output": "x.png", **nothing}
    files = ["--prompt-file", "p.txt", "--image", "1.png", "--image", "2.jpg", "--save-prior-codes", "c.json"]
    assert cli.main(["generate", "--model", "m", "--output", "x.png", *files]) == 0
    assert {"prompts": [], **nothing, "prompt_file": "p.txt", "images": ["1.png", "2.jpg"],
            "save_prior_codes": "c.json"}.items() <= calls[2].items()
    assert cli.main(["generate", "--model", "m", "--prompt", "a", "--prior-codes", "c.json", "--output", "x.png"]) == 0
    assert calls[3]["prior_codes"] == "c.json"


@pytest.mark.parametrize(
    "option, value, told",
    [
        ("--height", "100", "given 100, expected pixels, a multiple of 32, for instance 96"),
        ("--height", "-32", "expected pixels"),
        ("--width", "wide", "expected pixels"),
        ("--steps", "0", "a whole number of at least 1"),
        ("--steps", "1.5", "a whole number of at least 1"),
        ("--seed", "x", "a whole number of at least 0"),
        ("--guidance-scale", "-1", "expected at least 0"),
        ("--guidance-scale", "nan", "a finite number"),
        ("--guidance-scale", "much", "expected a number"),
    ],
)
def test_values_out_of_range_are_refused_at_the_door(option, value, told, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["generate", "--model", "m", "--prompt", "a", "--output", "x.png", f"{option}={value}"])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert f"argument {option}: given " in error and told in error


def test_held_out_share_is_below_one(capsys):
    with pytest.raises(SystemExit):
        cli.main("prepare --images i --output o --height 32 --width 32 --held-out 1".split())
    assert "expected at least 0 and less than 1" in capsys.readouterr().err
