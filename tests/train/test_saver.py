"""Checkpoints of a run that trains: in the background, on a disk that refuses, damaged and passed over."""

import concurrent.futures
import errno
import json
import os
import pathlib
import shutil
import threading
import zlib

import pytest

from mindglm.checkpoint import store
from mindglm.errors import UserError
from mindglm.recipe import schema
from tests.checkpoint.test_hostile import bounded, forged
from tests.parallel.job import ROOT, Job
from tests.train import fake
from tests.train.test_trainer import killed_after, same


def recipe_of(folder, background=True, save=2, steps=8, keep=9, **sections):
    return fake.make_recipe(folder, steps=steps, ema=0.9, checkpoint=schema.CheckpointSection(
        save_checkpoint_steps=save, keep_checkpoint_max=keep, async_save=background,
        keep_best_max=sections.pop("best", 0)), **sections)


def log(folder) -> str:
    return (folder / "log" / "train.log").read_text()


def test_a_checkpoint_made_in_the_background_is_that_of_its_step(tmp_path, monkeypatch):
    """The thread is held up until training is two steps on; what it then writes is what a plain save wrote."""
    fake.make_trainer(recipe_of(tmp_path / "plain", background=False, save=3)).fit()
    trainer = fake.make_trainer(recipe_of(tmp_path / "async", save=3))
    may_write, write = threading.Event(), store.write_part
    check, begun = trainer._due, []

    def held_up(*args):
        begun.append(trainer.counters.step)
        assert may_write.wait(60)
        return write(*args)

    def due():
        check()
        if trainer.counters.step == 5:
            assert store.steps(tmp_path / "async" / "checkpoint") == [] and begun == [3]
            may_write.set()

    monkeypatch.setattr(store, "write_part", held_up)
    trainer._due = due
    trainer.fit()
    for step in (3, 6, 8):
        plain, background = (store.load(tmp_path / name / "checkpoint", step) for name in ("plain", "async"))
        assert plain.common == background.common
        for kind in ("model", "opt", "ema"):
            same(background.tensors[kind], plain.tensors[kind])


def test_the_next_update_waits_for_the_copy_and_nothing_before_it(tmp_path, monkeypatch):
    """The thread may copy only when the next step has its gradients: what it then copies is still the saved step's."""
    fake.make_trainer(recipe_of(tmp_path / "plain", background=False, save=3, steps=6)).fit()
    trainer = fake.make_trainer(recipe_of(tmp_path / "async", save=3, steps=6))
    may_copy, write, apply = threading.Event(), trainer._saver._write, trainer.optimizer.apply
    waited = []

    def held_up(*args):
        assert may_copy.wait(60)
        return write(*args)

    def let_copy(*args):
        if trainer.counters.step == 3:  # forward and backward of step 4 are done
            waited.append(trainer._saver.busy and not may_copy.is_set())
            threading.Timer(0.3, may_copy.set).start()
        apply(*args)

    monkeypatch.setattr(trainer._saver, "_write", held_up)
    monkeypatch.setattr(trainer.optimizer, "apply", let_copy)
    trainer.fit()
    assert waited == [True]
    for step in (3, 6):
        plain, background = (store.load(tmp_path / name / "checkpoint", step) for name in ("plain", "async"))
        for kind in ("model", "opt", "ema"):
            same(background.tensors[kind], plain.tensors[kind])


def test_a_second_save_waits_for_the_first(tmp_path, monkeypatch):
    """Two are never written at once, and none is left out."""
    at_work, most, write = [], [], store.write_part

    def counted(folder, *args):
        at_work.append(folder)
        most.append(len(at_work))
        result = write(folder, *args)
        at_work.remove(folder)
        return result

    monkeypatch.setattr(store, "write_part", counted)
    fake.make_trainer(recipe_of(tmp_path, save=1)).fit()
    assert store.steps(tmp_path / "checkpoint") == list(range(1, 9)) and set(most) == {1}


@pytest.mark.parametrize("background", [True, False])
def test_what_goes_wrong_in_the_background_is_raised_at_the_next_step(tmp_path, monkeypatch, background):
    trainer = fake.make_trainer(recipe_of(tmp_path, background, save=4))

    def broken(*args):
        raise ValueError("a mistake in the writer")

    check = trainer._due

    def due():
        check()
        if trainer._saver.busy:
            concurrent.futures.wait([trainer._saver._work])  # the thread is as quick as the step

    trainer._due = due
    monkeypatch.setattr(store, "write_part", broken)
    with pytest.raises(ValueError, match="a mistake in the writer"):
        trainer.fit()
    assert trainer.counters.step == 4 and store.steps(tmp_path / "checkpoint") == []


def full_disk(monkeypatch, full_at, trainer, call="write_part"):
    """The disk is full while the trainer is at one of these steps and comes to this part of a save."""
    write = getattr(store, call)

    def refused(folder, *args):
        if int(folder.name.split("_")[1].split(".")[0]) in full_at:
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))
        return write(folder, *args)

    monkeypatch.setattr(store, call, refused)
    return trainer


@pytest.mark.parametrize("call", ["write_part", "commit"])
@pytest.mark.parametrize("background", [True, False])
def test_a_full_disk_is_said_and_training_goes_on(tmp_path, monkeypatch, background, call):
    trainer = full_disk(monkeypatch, {4, 6}, fake.make_trainer(recipe_of(tmp_path, background)), call)
    trainer.fit()
    assert not list((tmp_path / "checkpoint").glob(".iteration_*")), "what was written of them takes no room"
    assert store.steps(tmp_path / "checkpoint") == [2, 8] and trainer.counters.step == 8
    for step in (4, 6):
        assert (f"the checkpoint of step {step} could not be written (OSError: [Errno 28] No space left on device"
                in log(tmp_path))
    assert log(tmp_path).count("the newest is still that of step 2. Training goes on") == 2
    straight = fake.make_trainer(recipe_of(tmp_path / "straight"))
    straight.fit()
    same(fake.weights(trainer), fake.weights(straight))


def test_a_run_whose_last_checkpoint_is_lost_does_not_end_well(tmp_path, monkeypatch):
    trainer = full_disk(monkeypatch, {8}, fake.make_trainer(recipe_of(tmp_path)))
    with pytest.raises(UserError, match="step 8 could not be written .*still that of step 6.*make room"):
        trainer.fit()
    monkeypatch.undo()
    again = fake.make_trainer(recipe_of(tmp_path))
    assert again.counters.step == 6
    again.fit()
    assert store.steps(tmp_path / "checkpoint") == [2, 4, 6, 8]


def test_a_full_disk_does_not_hide_why_the_run_ended(tmp_path, monkeypatch, capfd):
    """The background fails of it while the run ends of something else."""
    trainer = full_disk(monkeypatch, {4}, fake.make_trainer(recipe_of(tmp_path, save=4)))
    step = trainer._step

    def mistaken(*args):
        if trainer.counters.step == 4:
            raise UserError("something else")
        return step(*args)

    monkeypatch.setattr(trainer, "_step", mistaken)
    monkeypatch.setattr(trainer._saver, "poll", list)
    with pytest.raises(UserError, match="something else"):
        trainer.fit()
    assert "the checkpoint of step 4 could not be written (OSError: [Errno 28]" in capfd.readouterr().err


def test_a_read_only_folder_is_said_too(tmp_path, monkeypatch):
    def read_only(folder):
        raise OSError(errno.EROFS, "Read-only file system", str(folder))

    monkeypatch.setattr(store, "begin", read_only)
    with pytest.raises(UserError, match="step 8 could not be written .*Read-only file system.*there is none yet"):
        fake.make_trainer(recipe_of(tmp_path)).fit()
    assert log(tmp_path).count("Training goes on") == 5  # steps 2, 4, 6, 8 and once more at the end


@pytest.mark.parametrize("background", [True, False])
def test_a_folder_that_cannot_even_be_looked_into_is_said_too(tmp_path, monkeypatch, background):
    """A shared disk that is away for a while: the run goes on, and saves again when it is back."""
    trainer = fake.make_trainer(recipe_of(tmp_path, background))
    root, listing = tmp_path / "checkpoint", pathlib.Path.iterdir

    def away(path):
        if path == root and trainer.counters.step in (4, 5):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return listing(path)

    monkeypatch.setattr(pathlib.Path, "iterdir", away)
    trainer.fit()
    assert store.steps(root) == [2, 6, 8]
    assert "the checkpoint of step 4 could not be written (OSError: [Errno 116]" in log(tmp_path)


def test_a_folder_that_cannot_be_looked_into_at_the_start_is_refused(tmp_path, monkeypatch):
    def away(path):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    killed_after(fake.make_trainer(recipe_of(tmp_path)), 3)
    monkeypatch.setattr(pathlib.Path, "iterdir", away)
    with pytest.raises(UserError, match="checkpoint: cannot be read .*Stale"):
        fake.make_trainer(recipe_of(tmp_path))


def test_older_checkpoints_that_cannot_be_removed_are_no_loss(tmp_path, monkeypatch):
    def refused(*args):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(store, "tidy", refused)
    trainer = fake.make_trainer(recipe_of(tmp_path, keep=1))
    trainer.fit()
    assert store.steps(tmp_path / "checkpoint") == [2, 4, 6, 8] and trainer.counters.step == 8
    assert "iteration_00000004 is written, but older checkpoints could not be removed" in log(tmp_path)


def spoil(folder, file: str, place: int) -> None:
    path = next(folder.glob(file))
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


def test_a_damaged_checkpoint_is_refused_and_passed_over_when_asked(tmp_path):
    """Each kind of tensor, the average that this run does not even keep, and the files besides tensors."""
    straight = fake.make_trainer(recipe_of(tmp_path / "straight"))
    straight.fit()
    settings = recipe_of(tmp_path / "run")
    killed_after(fake.make_trainer(settings), 7)
    root = tmp_path / "run" / "checkpoint"
    assert store.steps(root) == [2, 4, 6]
    for file, named in (("*-model-*", "tensor 'up'|tensor 'down'|tensor 'idle'|tensor 'norm_scale'"),
                        ("*-opt-*", "tensor 'adam_"), ("*-ema-*", "-ema-.*tensor '"), ("common.json", "common.json"),
                        ("ledger.jsonl", "ledger.jsonl"), ("recipe.yaml", "recipe.yaml")):
        spoil(root / "iteration_00000006", file, -3)
        for other in (settings, fake.make_recipe(tmp_path / "run", steps=8)):
            with pytest.raises(UserError, match=f"({named}).*damaged.*start with --fallback"):
                fake.make_trainer(other)
        spoil(root / "iteration_00000006", file, -3)  # twice is not at all
    spoil(root / "iteration_00000006", "*-opt-*", -3)
    spoil(root / "iteration_00000004", "metadata.json", 40)
    again = fake.make_trainer(settings, fallback=True)
    assert again.counters.step == 2 and store.steps(root) == [2]
    assert "passed over a damaged checkpoint, now iteration_00000006.damaged" in log(tmp_path / "run")
    again.fit()
    same(fake.weights(again), fake.weights(straight))
    assert store.steps(root) == [2, 4, 6, 8] and (root / "iteration_00000004.damaged").is_dir()


def test_a_checkpoint_with_an_altered_ledger_is_damaged(tmp_path, monkeypatch):
    """Its checksum fits, for the line was altered before it was written: refused, and passed over when asked."""
    trainer = fake.make_trainer(recipe_of(tmp_path))
    kept = trainer._ledger.checkpoint_files

    def altered():
        (name, content), = kept().items()
        return {name: content.replace(b'"seed": 0', b'"seed": 1') if trainer.counters.step == 6 else content}

    monkeypatch.setattr(trainer._ledger, "checkpoint_files", altered)
    killed_after(trainer, 7)
    with pytest.raises(UserError, match="iteration_00000006/ledger.jsonl: damaged .*ledger.jsonl:1.*--fallback"):
        fake.make_trainer(recipe_of(tmp_path))
    again = fake.make_trainer(recipe_of(tmp_path), fallback=True)
    assert again.counters.step == 4 and store.steps(tmp_path / "checkpoint") == [2, 4]
    again.fit()


def test_a_checkpoint_that_lost_its_metadata_is_damaged(tmp_path):
    """It has its name, so it was whole once: the one before it is taken only when asked."""
    killed_after(fake.make_trainer(recipe_of(tmp_path)), 7)
    (tmp_path / "checkpoint" / "iteration_00000006" / "metadata.json").unlink()
    with pytest.raises(UserError, match="iteration_00000006/metadata.json: damaged .*--fallback"):
        fake.make_trainer(recipe_of(tmp_path))
    again = fake.make_trainer(recipe_of(tmp_path), fallback=True)
    assert again.counters.step == 4 and (tmp_path / "checkpoint" / "iteration_00000006.damaged").is_dir()


FORGED_TEXTS = {
    "a list": ("common.json", b"[]"), "a step of another": ("common.json", b'{"step": 9, "updates": 2, "skipped": 0, '
                                                            b'"skipped_in_row": 0}'),
    "more than any": ("common.json", b" " * (64 << 20)), "no text": ("recipe.yaml", b"\xff\xfe"),
    "no sections": ("recipe.yaml", b"[1, 2]"), "endless": ("recipe.yaml", b"#" * (64 << 20)),
}


@pytest.mark.parametrize("what", FORGED_TEXTS)
def test_forged_files_besides_tensors(tmp_path, what):
    """By someone who knows how checksums are made: refused in words, in bounded memory."""
    name, content = FORGED_TEXTS[what]
    killed_after(fake.make_trainer(recipe_of(tmp_path)), 3)
    folder = tmp_path / "checkpoint" / "iteration_00000002"
    (folder / name).write_bytes(content)
    forged(folder, lambda listed: listed["files"][name].update(bytes=len(content), crc32=zlib.crc32(content)))

    def refused():
        with pytest.raises(UserError, match=name):
            fake.make_trainer(recipe_of(tmp_path))

    bounded(refused)


def test_no_whole_checkpoint_left(tmp_path):
    killed_after(fake.make_trainer(recipe_of(tmp_path)), 3)
    spoil(tmp_path / "checkpoint" / "iteration_00000002", "common.json", 0)
    with pytest.raises(UserError, match="no whole checkpoint is left"):
        fake.make_trainer(recipe_of(tmp_path), fallback=True)
    with pytest.raises(UserError, match="common.json: damaged"):  # and not from step 0, over the ledger
        fake.make_trainer(recipe_of(tmp_path))


def test_another_model_is_refused(tmp_path):
    killed_after(fake.make_trainer(recipe_of(tmp_path)), 3)
    objective = fake.Objective()
    objective.model.extra = fake.ops.param((2,), "ones")
    objective.model.extra.name = "extra"
    with pytest.raises(UserError, match="is the checkpoint of another model; differing tensors: .'extra'"):
        fake.make_trainer(recipe_of(tmp_path), objective)


def test_the_best_checkpoints_are_kept(tmp_path):
    """The loss of a validation at the same step is in common.json and decides."""
    settings = recipe_of(tmp_path, keep=1, best=1, save=1, validation=schema.ValidationSection(1, 8))
    trainer = fake.make_trainer(settings, held_out=fake.Dataset(30, offset=500))
    losses = iter([9.0, 8.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    trainer.validate = lambda: next(losses)
    trainer.fit()
    assert store.steps(tmp_path / "checkpoint") == [3, 8]
    assert store.load(tmp_path / "checkpoint", 3).common["validation_loss"] == 3.0


def test_two_ranks_agree_on_what_became_of_a_checkpoint(tmp_path):
    """ZeRO-1 on two ranks, in the background: rank 1's disk refuses step 4, both go on and step 6 is whole, of both
    ranks' files, and equal to one process's; then rank 1's writer breaks, and both end with its error."""
    with Job(2, [str(ROOT / "tests/train/saver_worker.py"), str(tmp_path / "two")], tmp_path / "logs") as job:
        settings = recipe_of(tmp_path / "one", background=False, save=3, steps=6)
        fake.make_trainer(settings).fit()
        assert job.wait(300) == [1, 1], job.logs()
    assert "the checkpoint of step 4 could not be written (rank 1: OSError: [Errno 28]" in log(tmp_path / "two")
    root = tmp_path / "two" / "checkpoint"
    assert store.steps(root) == [2, 6]
    names = sorted(path.name for path in (root / "iteration_00000006").glob("*.safetensors"))
    assert names == [f"mindglm-{kind}-{rank:07d}-0000002.safetensors" for kind in ("ema", "model", "opt")
                     for rank in (0, 1)]
    one, two = (store.load(tmp_path / name / "checkpoint", 6) for name in ("one", "two"))
    for kind in ("model", "opt", "ema"):
        assert one.tensors[kind].keys() == two.tensors[kind].keys()
        for name, array in one.tensors[kind].items():
            assert abs(two.tensors[kind][name] - array).max() < 1e-5, (kind, name)
    metadata = json.loads((root / "iteration_00000006" / "metadata.json").read_bytes())
    assert any(len(tensor["pieces"]) == 2 for tensor in metadata["tensors"]["model"].values())
    assert "a mistake in rank 1's writer" in job.logs()
    assert "the checkpoint of step 8 could not be written by rank 1: ValueError" in job.logs()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_staging_folder_that_goes_away_before_the_commit_does_not_end_the_run(tmp_path, monkeypatch, asynchronous):
    """The disk was unmounted, or somebody removed the checkpoints: said, and the next save works."""
    write = store.write_part

    def unmounted(folder, *args):
        listing = write(folder, *args)
        if folder.name == ".iteration_00000004.tmp":
            shutil.rmtree(folder.parent)
        return listing

    monkeypatch.setattr(store, "write_part", unmounted)
    trainer = fake.make_trainer(fake.make_recipe(tmp_path, steps=8, checkpoint=schema.CheckpointSection(
        save_checkpoint_steps=2, async_save=asynchronous)))
    trainer.fit()
    assert store.steps(tmp_path / "checkpoint") == [6, 8]
    assert "checkpoint of step 4 could not be written" in (tmp_path / "log" / "train.log").read_text()


def test_a_save_under_way_is_ended_before_the_run_stops_with_a_capsule(tmp_path):
    """Of several ranks, too, where the folder gets its name only when all have agreed."""
    with Job(2, [str(ROOT / "tests/train/stopped_worker.py"), str(tmp_path / "run")], tmp_path / "logs") as job:
        assert job.wait() == [0, 0], job.logs()
    assert store.steps(tmp_path / "run" / "checkpoint") == [4]
