"""launch/rehearse.sh: what is shrunk and what is kept, and that the report sees when a run was not as planned."""


import numpy as np
import pytest

from mindglm import recipe as recipes
from mindglm.plan import schedules
from mindglm.train import rehearsal
from tests.launch.stand_ins import ROOT, Place

RECIPES = ROOT / "recipes"
CLUSTER = ["parallel_config.pipeline_stage=8", "parallel_config.micro_batch_num=16",
           "runner_config.gradient_accumulation_steps=1"]


def planned(file, *options):
    """(recipe, shrunk recipe, arguments, stage ranges) of a rehearsal."""
    args = rehearsal.build_parser().parse_args([str(RECIPES / file), *options])
    recipe = recipes.load(args.recipe, CLUSTER)
    args.micro_batches = args.micro_batches or 16
    rehearsal.set_size(recipe, args)
    ranges = rehearsal.stage_ranges(recipe, args.height, args.width)
    return recipe, rehearsal.shrunk(recipe, tuple(stop - start for start, stop in ranges), args), args, ranges


def records_of(small, args, ranges):
    """What a run that goes by plan would note."""
    stages = small.parallel_config.pipeline_stage
    schedule = schedules.build(small.parallel_config.pipeline_schedule, stages, small.micro_batches)
    size = rehearsal.message_elements(small.model.model_config, small.model_type, 0, small.objective.pad_to_multiple)
    records = []
    for rank, (start, stop) in enumerate(ranges):
        shapes = {name: shape for name, shape in rehearsal._trained(small.model.model_config, small.model_type).items()
                  if rehearsal._layers([name]) & set(range(start - 1, stop - 1))
                  or rank == 0 and "embed_tokens" in name
                  or rank == stages - 1 and (name.startswith("lm_head") or name.endswith("language_model.norm.weight"))}
        sends = [(kind, peer, size) for kind, peer in rehearsal.expected_sends(schedule, rank)] * args.steps
        records.append((shapes, sends, min(16, stages - rank), [3.0] * args.steps))
    return records


def test_what_no_rehearsal_made_is_not_removed(tmp_path, capsys):
    words = [str(RECIPES / "glm_image/ar_9b_pretrain_256.yaml"), *CLUSTER, "--prepare", f"--output={tmp_path / 'run'}"]
    for _ in range(2):  # a new folder, and that of an earlier rehearsal
        assert rehearsal.main(words) == 0 and len(list((tmp_path / "run").iterdir())) == 1
        (tmp_path / "run" / "metrics.jsonl").touch()
    (tmp_path / "run" / rehearsal.MARK).unlink()
    assert rehearsal.main(words) == 2 and (tmp_path / "run" / "metrics.jsonl").exists()
    assert "no rehearsal made what is in it" in capsys.readouterr().err


@pytest.mark.parametrize("file, layers", [
    ("glm_image/ar_9b_pretrain_256.yaml", 40), ("glm_image/dit_7b_pretrain_256.yaml", 30)])
def test_depth_names_and_layout_are_kept(file, layers):
    recipe, small, args, ranges = planned(file)
    assert len(ranges) == 8 and ranges[0][0] == 0 and ranges[-1][1] == layers + 2
    full, less = (rehearsal._trained(r.model.model_config, r.model_type) for r in (recipe, small))
    assert set(full) == set(less)
    size = {name: sum(int(np.prod(shape)) for shape in tensors.values()) for name, tensors in
            (("full", full), ("less", less))}
    assert size["full"] > 6e9 and size["less"] < 3e7
    section = small.parallel_config
    assert section.pipeline_cuts == tuple(stop - start for start, stop in ranges)
    assert (section.data_parallel, section.pipeline_stage, section.pipeline_schedule, small.micro_batches) == (
        1, 8, recipe.parallel_config.pipeline_schedule, 16)
    sample = rehearsal.Samples(small)[3]
    assert sample["large_codes"].max() < 16384


def test_a_run_by_plan_and_runs_that_are_not(capsys):
    recipe, small, args, ranges = planned("glm_image/ar_9b_pretrain_256.yaml")
    assert rehearsal.report(recipe, small, args, ranges, records_of(small, args, ranges))
    text = capsys.readouterr().out
    assert text.count("as planned") == 6 and "stage 7" in text and "micro-batch of" in text

    def spoilt(change):
        records = records_of(small, args, ranges)
        records[1] = change(*records[1])
        good = rehearsal.report(recipe, small, args, ranges, records)
        differing = [line for line in capsys.readouterr().out.splitlines() if line.startswith("DIFFERS")]
        assert not good and len(differing) >= 1
        return differing[0]

    def without_one(shapes):
        return dict(list(shapes.items())[1:])

    assert "names" in spoilt(lambda shapes, sends, kept, losses: (without_one(shapes), sends, kept, losses))
    moved = records_of(small, args, ranges)[2][0]
    assert "names" in spoilt(lambda shapes, sends, kept, losses: ({**shapes, **moved}, sends, kept, losses))
    assert "messages" in spoilt(lambda shapes, sends, kept, losses: (shapes, sends[1:] + sends[:1], kept, losses))
    assert "sizes" in spoilt(
        lambda shapes, sends, kept, losses: (shapes, [(*sends[0][:2], 5), *sends[1:]], kept, losses))
    assert "kept" in spoilt(lambda shapes, sends, kept, losses: (shapes, sends, 9, losses))
    assert "loss" in spoilt(lambda shapes, sends, kept, losses: (shapes, sends, kept, [3.0, 2.0]))


def test_recipes_without_a_pipeline_are_refused(tmp_path):
    place = Place(tmp_path)
    for file, words in (("nano/ar.yaml", "no pipeline to rehearse"), ("nano/vae.yaml", "has no pipeline")):
        code, text = place.run("bash", ROOT / "launch/rehearse.sh", RECIPES / file)
        assert code == 2 and words in text, text


@pytest.mark.slow
@pytest.mark.parametrize("file, options", [
    ("nano/ar.yaml", ["--data-parallel", 2]),
    ("nano/dit.yaml", ["parallel_config.pipeline_schedule=gpipe"]),
])
def test_a_rehearsal(tmp_path, file, options):
    place = Place(tmp_path, real_msrun=True)
    layout = ["parallel_config.pipeline_stage=2", "parallel_config.micro_batch_num=4", "context.mode=1"]
    code, text = place.run("bash", ROOT / "launch/rehearse.sh", RECIPES / file, *options, *layout, seconds=400)
    assert code == 0 and text.count("as planned  ") == 6, text
