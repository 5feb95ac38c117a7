"""Pictures of two sizes in one run: prepared, trained on, validated, looked at, resumed, and the same in any layout."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from mindglm import order
from mindglm import recipe as recipes
from mindglm.checkpoint import released, store
from mindglm.data import prepare
from mindglm.data.loader import ShardDataset
from mindglm.errors import UserError
from mindglm.models.ar_generator import config as ar_config
from mindglm.models.dit_decoder import config as dit_config
from mindglm.models.vae import config as vae_config
from mindglm.recipe import schema
from mindglm.train import objectives, trainer
from mindglm.train.batches import Batches, validation_batches
from mindglm.train.layout import Layout
from tests.data.pictures import picture, write_captions
from tests.golden import REPO
from tests.parallel.job import Job
from tests.train import fake

SIZES = [(64, 64), (64, 96)]
SEED, STEPS, BATCH, MICRO = 2, 4, 4, 2
TASKS = {
    "ar": ("vision_language_encoder", ar_config, schema.ArNextTokenOptions(), "ar_next_token"),
    "dit": ("transformer", dit_config, schema.FlowMatchingOptions(), "flow_matching"),
    "vae": ("vae", vae_config, schema.VaeReconstructionOptions(crop_size=32), "vae_reconstruction"),
    "vq": ("vision_language_encoder", ar_config, schema.VqReconstructionOptions(reseed_interval=1),
           "vq_reconstruction"),
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Two square pictures for each wide one, 8 + 4, held out 2 + 1. data: through the encoders of the tiny released
    folder; pixels: as they are."""
    root = tmp_path_factory.mktemp("sizes")
    (root / "images").mkdir()
    rows = []
    for i in range(15):
        picture(i, *SIZES[i % 3 == 2]).save(root / "images" / f"p{i}.png")
        rows.append({"file": f"p{i}.png", "caption": f'a sign that says "{i}"', "split": "train" if i < 12 else
                     "held_out"})
    write_captions(root / "images", rows)
    prepare.run(root / "images", None, REPO, root / "data", SIZES)
    prepare.run(root / "images", None, None, root / "pixels", SIZES, pixels_only=True)
    return root / "data"


def recipe_of(folder, task, dataset, steps=STEPS, accumulation=BATCH // MICRO, **sections):
    component, config, options, kind = TASKS[task]
    return fake.make_recipe(
        folder, steps=steps, batch=BATCH, accumulation=accumulation, ema=0.5, save=2, **{
            "seed": SEED, "lr_schedule": schema.LrScheduleSection(learning_rate=0.002, total_steps=STEPS),
            "trainer": schema.TrainerSection(kind, "tiny"), "objective": options, "pretrained_model_dir": str(REPO),
            "model": schema.ModelSection(config.from_hf(released.component_config(REPO, component))),
            "train_dataset": schema.DatasetSection(str(dataset)),
            "validation": schema.ValidationSection(eval_step_interval=2, eval_samples=3),
            "monitor_config": schema.MonitorSection(tensorboard=False, sample_step_interval=4), **sections})


def curve(folder, key):
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    return np.array([line[key] for line in lines if key in line], float)


class Shapes:
    """An objective that keeps what it is given."""

    def collate(self, samples, draw, training):
        return np.array([sample["index"] for sample in samples]), np.array([s["target_size"] for s in samples])


def test_a_global_batch_has_one_size_on_all_ranks(dataset):
    """Also in the micro-batches of every rank; the ranks' parts join to the batch of one process."""
    data, ranks = ShardDataset(dataset), 2
    alone = Batches(Shapes(), data, 3, 8, 2)
    parts = [Batches(Shapes(), data, 3, 8, 2, Layout(rank, ranks)) for rank in range(ranks)]
    seen = set()
    for step in range(20):
        whole, _ = alone.make(step)
        split = [micro_batch for part in parts for micro_batch in part.make(step)[0]]
        (size,) = {tuple(size) for _, sizes in [*whole, *split] for size in sizes.tolist()}
        assert data.sizes[alone.ids(step)[0]] == size
        joined = [np.concatenate([ids for ids, _ in micro_batches]).tolist() for micro_batches in (whole, split)]
        assert joined[0] == joined[1]
        seen.add(size)
    assert seen == set(SIZES)
    for batches in (alone, *parts):
        batches.close()


def test_a_validation_takes_every_size_by_its_share(dataset):
    data = ShardDataset(dataset, "train")  # 8 and 4 samples
    for world in (1, 2, 3):
        batches = [batch for rank in range(world)
                   for batch in validation_batches(Shapes(), data, 0, 6, 2, Layout(rank, world))]
        assert all(len({tuple(size) for size in sizes.tolist()}) == 1 for _, sizes in batches)
        ids = np.concatenate([ids for ids, _ in batches]).tolist()
        assert sorted(ids) == sorted([*data.members[0][:4].tolist(), *data.members[1][:2].tolist()])


def test_the_shift_of_noise_follows_the_size_of_each_batch(dataset):
    """noisy - z = sigma (e - z), with sigma shifted by the number of the DiT's tokens; the time given to it is not."""
    data = ShardDataset(dataset)
    objective = objectives.build(recipe_of("unused", "dit", dataset))
    batches = Batches(objective, data, 0, 2, 1)
    tokens = {}
    for step in range(6):
        bucket, ids, _ = batches.ids(step)
        tokens[bucket] = data.sizes[bucket][0] * data.sizes[bucket][1] // 16**2
        (noisy, target, *_, times, _, _), = batches.make(step)[0]
        for row, sample in enumerate(ids.tolist()):
            sigma = (noisy[row] - data[sample]["latents"]).std() / target[row].std()
            expected = objective.scheduler.sigma(times[row] + 1, tokens[bucket])
            assert sigma == pytest.approx(float(expected), rel=1e-3)
    batches.close()
    assert tokens == {0: 16, 1: 24}


@pytest.mark.parametrize("task", ["ar", "dit"])
def test_a_run_on_two_sizes_resumes_to_the_bit(tmp_path, dataset, task):
    trainer.run(recipe_of(tmp_path / "whole", task, dataset))
    middle = "checkpoint/iteration_00000002"
    shutil.copytree(tmp_path / "whole" / middle, tmp_path / "resumed" / middle)
    trainer.run(recipe_of(tmp_path / "resumed", task, dataset))
    for steps in (range(2), range(2, STEPS)):
        assert {order.bucket_turn(SEED, step, (8, 4))[0] for step in steps} == {0, 1}, "before and after the break"
    for key, count in (("loss", STEPS), ("grad_norm", STEPS), ("validation_loss", 2)):
        values = curve(tmp_path / "whole", key)
        assert len(values) == count and np.isfinite(values).all()
        assert np.array_equal(values[count // 2:], curve(tmp_path / "resumed", key)), key
    ends = [store.load(tmp_path / name / "checkpoint").tensors for name in ("whole", "resumed")]
    for kind in ("model", "opt", "ema"):
        for name, values in ends[0][kind].items():
            assert values.tobytes() == ends[1][kind][name].tobytes(), (kind, name)
    lines = [json.loads(text) for text in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [line["size"] for line in lines if "loss" in line] == [
        ("64x64", "96x64")[order.bucket_turn(SEED, step, (8, 4))[0]] for step in range(STEPS)]
    told = (tmp_path / "whole" / "log" / "train.log").read_text()
    assert "sizes, width x height (samples): 64x64 (8), 96x64 (4); of a validation: 64x64 (2), 96x64 (1)" in told
    drawn = np.asarray(Image.open(tmp_path / "whole" / "samples" / "step_000004.png"))
    unit = {"ar": 8, "dit": 32}[task]  # codes are drawn as squares of 8 pixels
    assert drawn.shape == (2 * 4 * unit, 2 * 2 * unit, 3), "two rows of two squares, two rows of one wide picture"
    assert (drawn[4 * unit:, 3 * unit:] == 255).all() and drawn[:4 * unit].std() > 1


def test_codes_are_reseeded_alike_however_the_batch_is_cut(tmp_path, dataset):
    """Micro-batches are a part of the layout, and changing them on resume is called safe."""
    options = {"objective": schema.VqReconstructionOptions(reseed_interval=1), "pretrained_model_dir": None,
               "validation": schema.ValidationSection(), "monitor_config": schema.MonitorSection(tensorboard=False)}
    for accumulation in (1, 2):
        folder = tmp_path / str(accumulation)
        trainer.run(recipe_of(folder, "vq", dataset.parent / "pixels", 4, accumulation, **options))
    for key in ("loss", "codes_reseeded"):
        np.testing.assert_allclose(curve(tmp_path / "2", key), curve(tmp_path / "1", key), rtol=1e-5)


def test_sizes_the_dataset_does_not_hold_are_refused_and_one_of_them_can_be_trained_on(tmp_path, dataset):
    section = schema.DatasetSection(str(dataset), ("128x128",))
    with pytest.raises(UserError, match="buckets: 128x128 is not in the dataset .* holds 64x64, 96x64"):
        trainer.run(recipe_of(tmp_path, "dit", dataset, train_dataset=section))
    section = schema.DatasetSection(str(dataset), ("96x64",))
    trainer.run(recipe_of(tmp_path, "dit", dataset, steps=1, train_dataset=section))
    assert "sizes, width x height" not in (tmp_path / "log" / "train.log").read_text()


@pytest.mark.parametrize("task", ["vae", "vq"])
def test_training_on_pixels_of_two_sizes(tmp_path, dataset, task):
    """Crops of the VAE, grids of the tokenizer; the VAE's export measures its latents over both sizes."""
    trainer.run(recipe_of(tmp_path, task, dataset.parent / "pixels", steps=2, accumulation=1))
    assert np.isfinite(curve(tmp_path, "loss")).all() and len(curve(tmp_path, "validation_loss")) == 1
    if task == "vae":
        assert released.component_config(tmp_path / "model", "vae")["latents_std"] != released.component_config(
            REPO, "vae")["latents_std"]
    else:
        assert len(curve(tmp_path, "codes_used")) == 2


@pytest.mark.slow
@pytest.mark.parametrize("task", ["ar", "dit"])
def test_compiled_once_for_each_size(tmp_path, dataset, task):
    """context.mode 0: the losses of PyNative, and one graph of gradients for each size.

    One of the loss (`plain`), for the square pictures: the single wide picture of the validation is too rare a batch.
    """
    from mindspore.graph.api import ms_compile_cache

    options = {"ar": schema.ArNextTokenOptions(pad_to_multiple=32), "dit": schema.FlowMatchingOptions(glyph_pad_to=8)}
    sections = {"objective": options[task], "monitor_config": schema.MonitorSection(tensorboard=False)}
    trainer.run(recipe_of(tmp_path / "by_op", task, dataset, **sections))
    before = set(ms_compile_cache)
    trainer.run(recipe_of(tmp_path / "compiled", task, dataset, mode=0, **sections))
    prefix = "mindglm.train.work."  # the learning rate's schedule is a graph, too
    graphs = [phase.removeprefix(prefix).split(".")[0] for phase in ms_compile_cache - before
              if phase.startswith(prefix)]
    assert sorted(graphs) == ["gradients", "gradients", "plain"]
    for key in ("loss", "validation_loss"):
        np.testing.assert_allclose(curve(tmp_path / "compiled", key), curve(tmp_path / "by_op", key), rtol=1e-5)


RUNS = """import json, sys
from mindglm import recipe
from mindglm.train import trainer
for path in json.loads(sys.argv[1]):
    trainer.run(recipe.load(path))"""


@pytest.mark.slow
def test_two_workers_end_with_the_weights_of_one(tmp_path, dataset):
    """strict_numerics, so bit for bit: the batch split in two; the model in two stages, where it can be a pipeline."""
    layouts = {"shares": {"data_parallel": 2}, "stages": {"pipeline_stage": 2, "micro_batch_num": 2}}
    names = {"ar": list(layouts), "dit": list(layouts), "vae": ["shares"], "vq": ["shares"]}
    data = {"ar": dataset, "dit": dataset, "vae": dataset.parent / "pixels", "vq": dataset.parent / "pixels"}
    paths = []
    for task, name in ((task, name) for task in names for name in names[task]):
        settings = recipe_of(tmp_path / f"{task}_{name}", task, data[task], accumulation=1, strict_numerics=True,
                             parallel_config=schema.ParallelSection(**layouts[name]))
        paths.append(tmp_path / f"{task}_{name}.yaml")
        paths[-1].write_text(recipes.to_yaml(settings))
    with Job(2, ["-c", RUNS, json.dumps(list(map(str, paths)))], tmp_path / "logs") as job:
        for task in names:
            trainer.run(recipe_of(tmp_path / f"{task}_one", task, data[task], strict_numerics=True))
        assert job.wait(500) == [0, 0], job.logs()
    for task in names:
        one = store.load(tmp_path / f"{task}_one" / "checkpoint").tensors["model"]
        for name in names[task]:
            folder = tmp_path / f"{task}_{name}"
            for key in ("loss", "validation_loss"):
                np.testing.assert_allclose(curve(folder, key), curve(tmp_path / f"{task}_one", key), rtol=1e-6)
            many = store.load(folder / "checkpoint").tensors["model"]
            assert {n for n in one if one[n].tobytes() != many[n].tobytes()} == set(), (task, name)
