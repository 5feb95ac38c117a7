"""Whole runs of the fake objective: resume, skipped steps, signals, validation, files."""

import builtins
import errno
import json
import os
import pathlib
import signal

import numpy as np
import pytest

from mindglm.checkpoint import store
from mindglm.errors import UserError
from mindglm.recipe import schema
from mindglm.train import metrics
from tests.train import fake


def lines(output_dir, key="loss"):
    found = [json.loads(text) for text in (output_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if key in line]


def run(output_dir, **options):
    trainer = fake.make_trainer(fake.make_recipe(output_dir, **options))
    trainer.fit()
    return trainer


def same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].tobytes() == second[name].tobytes(), name


@pytest.mark.parametrize("mode", [1, 0])
def test_resumed_run_equals_the_straight_one_bit_for_bit(tmp_path, mode):
    """10 steps = 5 steps, a new process's worth of objects, 5 more: weights, moments, average, metrics."""
    straight = run(tmp_path / "a", steps=10, ema=0.9, mode=mode)
    interrupted = fake.make_recipe(tmp_path / "b", steps=10, ema=0.9, save=5, mode=mode)
    first = fake.make_trainer(interrupted)
    killed_after(first, 7)
    second = fake.make_trainer(interrupted)
    assert second.counters.step == 5
    second.fit()
    same(fake.weights(second), fake.weights(straight))
    for mine, its in zip(second.optimizer.moments(), straight.optimizer.moments(), strict=True):
        assert mine.tobytes() == its.tobytes()
    assert second.ema.average.tobytes() == straight.ema.average.tobytes()
    for name in ("step", "loss", "grad_norm", "lr", "samples", "skipped"):
        assert [line[name] for line in lines(tmp_path / "b")] == [line[name] for line in lines(tmp_path / "a")]
    a, b = (store.load(tmp_path / name / "checkpoint") for name in "ab")
    assert a.common == b.common
    for kind in ("model", "opt", "ema"):
        same(b.tensors[kind], a.tensors[kind])


@pytest.mark.parametrize("path", ["metrics.jsonl", "ledger.jsonl", "log/train.log"])
@pytest.mark.parametrize("resumed", [False, True])
def test_start_on_a_full_disk_is_a_user_error(tmp_path, monkeypatch, path, resumed):
    """Each file in turn cannot be opened, or, when it must be rewritten for a resume, not be written. Nothing is left
    of the attempt, and with room the run starts."""
    settings = fake.make_recipe(tmp_path, steps=4, save=2)
    if resumed:
        killed_after(fake.make_trainer(settings), 3)
        (tmp_path / "metrics.jsonl").write_text("".join(['{"step": 1, "loss": 1}\n', '{"step": 3, "loss": 1}\n']))
    real_open, real_write, real_bytes = open, os.write, pathlib.Path.write_bytes

    def full(name):
        if pathlib.Path(path).name in str(name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(name))

    def opened(name, *args, **kwargs):
        if not pathlib.Path(str(name)).name.startswith("."):  # a full disk still makes a file of no length
            full(name)
        return real_open(name, *args, **kwargs)

    def written(handle, data):
        full(os.readlink(f"/proc/self/fd/{handle}"))
        return real_write(handle, data)

    def bytes_written(self, data):
        real_bytes(self, b"")
        full(self)
        return real_bytes(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", opened)
        patch.setattr(os, "write", written)
        patch.setattr(pathlib.Path, "write_bytes", bytes_written)
        with pytest.raises(UserError, match=f"output_dir {tmp_path} cannot be written .*No space left.*make room"):
            fake.make_trainer(settings)
    assert not [found for found in tmp_path.rglob(".*") if found.name.endswith(".tmp")]
    fake.make_trainer(settings).fit()
    assert store.steps(tmp_path / "checkpoint") == [2, 4]


def killed_after(trainer, steps):
    """Run until the given step and drop everything, as a kill would."""
    check = trainer._due

    def due():
        check()
        if trainer.counters.step == steps:
            raise KeyboardInterrupt

    trainer._due = due
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()


@pytest.mark.parametrize("changed, said", [("nothing", ""), ("lost a line", "not have the 6 lines"), ("cut", "")])
def test_metrics_go_on_where_the_checkpoint_says(tmp_path, monkeypatch, changed, said):
    """Five steps and a validation; a line that somebody takes out, or one that the kill cuts, does not disturb."""
    settings = fake.make_recipe(tmp_path, steps=10, save=5, validation=schema.ValidationSection(5, 8))
    held_out, path = fake.Dataset(30, offset=500), tmp_path / "metrics.jsonl"
    killed_after(fake.make_trainer(settings, held_out=held_out), 7)
    assert store.load(tmp_path / "checkpoint", 5).common["metrics_lines"] == 6
    there = path.read_text().splitlines(keepends=True)
    left = there[:2] + there[3:] if changed == "lost a line" else there
    path.write_text("".join(left) + ('{"step": 8, "lo' if changed == "cut" else ""))
    asked = []
    monkeypatch.setattr(metrics, "_step_of", lambda line, step_of=metrics._step_of: asked.append(line) or step_of(line))
    trainer = fake.make_trainer(settings, held_out=held_out)
    kept = left[:5] if changed == "lost a line" else left[:6]
    assert path.read_text() == "".join(kept) and trainer.metrics.lines == len(kept)
    assert (len(asked) == 2) == (not said)  # the lines at the cut alone
    assert said in (text := (tmp_path / "log" / "train.log").read_text()) and bool(said) == ("was changed" in text)
    trainer.fit()
    steps = [1, 2, 4] if changed == "lost a line" else [1, 2, 3, 4]
    assert [line["step"] for line in lines(tmp_path)] == [*steps, 5, 6, 7, 8, 9, 10]


def test_metrics_of_a_checkpoint_that_did_not_count_them(tmp_path):
    """Checkpoints of earlier releases: lines are chosen by their step, and nothing is said of it."""
    settings = fake.make_recipe(tmp_path, steps=6, save=3)
    first = fake.make_trainer(settings)
    first._saver.save, save = lambda *args: save(*args[:-1], {}), first._saver.save
    killed_after(first, 5)
    assert "metrics_lines" not in store.load(tmp_path / "checkpoint").common
    second = fake.make_trainer(settings)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3] and second.metrics.lines == 3
    assert "was changed" not in (tmp_path / "log" / "train.log").read_text()
    second.fit()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_finished_run_started_again_does_nothing(tmp_path):
    first = run(tmp_path, steps=3)
    again = run(tmp_path, steps=3)
    same(fake.weights(again), fake.weights(first))
    assert len(lines(tmp_path)) == 3


def test_training_lowers_the_loss_and_the_accumulated_run_equals_the_plain_one(tmp_path):
    plain = run(tmp_path / "a", steps=30)
    split = run(tmp_path / "b", steps=30, accumulation=4)
    losses = [line["loss"] for line in lines(tmp_path / "a")]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    np.testing.assert_allclose([line["loss"] for line in lines(tmp_path / "b")], losses, rtol=1e-5)
    for name, values in fake.weights(plain).items():
        np.testing.assert_allclose(fake.weights(split)[name], values, atol=1e-5)
    assert np.array_equal(fake.weights(plain)["idle"], fake.weights(split)["idle"])


def test_nan_step_is_skipped_and_counted_as_if_it_had_not_been(tmp_path):
    """The update count, and with it the bias correction, passes over the skipped step."""
    settings = fake.make_recipe(tmp_path, steps=10, ema=0.5)
    objective = fake.Objective()
    objective.bad_samples = {0}  # 40 samples, 8 a step: once in each of the two epochs
    trainer = fake.make_trainer(settings, objective)
    trainer.fit()
    skipped = [line for line in lines(tmp_path) if line["loss"] is None]
    assert len(skipped) == 2 and lines(tmp_path)[-1]["skipped"] == 2
    assert (trainer.counters.updates, trainer.counters.skipped, trainer.counters.step) == (8, 2, 10)
    assert all(np.isfinite(values).all() for values in fake.weights(trainer).values())
    assert "overflow cond: True" in (tmp_path / "log" / "train.log").read_text()


def test_too_many_skipped_steps_in_a_row_end_the_run(tmp_path):
    settings = fake.make_recipe(tmp_path, steps=50, runner_wrapper=schema.RunnerWrapperSection(max_skipped_steps=3))
    objective = fake.Objective()
    objective.bad_samples = set(range(40))
    with pytest.raises(UserError, match="step 4: .* 4 steps in a row .*max_skipped_steps is 3"):
        fake.make_trainer(settings, objective).fit()


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_saves_after_the_step_and_exits(tmp_path, number, code):
    settings = fake.make_recipe(tmp_path, steps=12)
    trainer = fake.make_trainer(settings)
    step = trainer._step

    def signalled(*args):
        result = step(*args)
        if trainer.counters.step == 4:
            os.kill(os.getpid(), number)
        return result

    trainer._step = signalled
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as stopped:
        trainer.fit()
    assert stopped.value.code == code and store.load(tmp_path / "checkpoint").step == 5
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    rest = fake.make_trainer(settings)
    rest.fit()
    same(fake.weights(rest), fake.weights(run(tmp_path / "straight", steps=12)))


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_does_not_cut_the_last_save_short(tmp_path, number, code):
    trainer = fake.make_trainer(fake.make_recipe(tmp_path, steps=3))
    save = trainer._saver.save

    def signalled(*args):
        os.kill(os.getpid(), number)
        return save(*args)

    trainer._saver.save = signalled
    with pytest.raises(SystemExit) as stopped:
        trainer.fit()
    assert stopped.value.code == code and store.load(tmp_path / "checkpoint").step == 3


def test_validation_is_comparable_and_does_not_touch_training(tmp_path):
    """Same weights give the same number whatever the step; with validation the weights are those of a run without."""
    section = schema.ValidationSection(eval_step_interval=2, eval_samples=11)
    settings = fake.make_recipe(tmp_path / "a", steps=6, validation=section, ema=0.5)
    watched = fake.make_trainer(settings, held_out=fake.Dataset(30, offset=500))
    watched.fit()
    values = [line["validation_loss"] for line in lines(tmp_path / "a", "validation_loss")]
    assert len(values) == 3 and watched.validate() == pytest.approx(values[-1], rel=1e-6) == watched.validate()
    with watched.exported_weights():
        batches = watched.objective.collate([fake.Dataset(30, 500)[i] for i in range(11)], validation_draw, False)
        loss, weight = watched.objective.network(*fake.tensors(*batches))
    assert values[-1] == pytest.approx(float(loss) / float(weight), rel=1e-5)
    same(fake.weights(watched), fake.weights(run(tmp_path / "b", steps=6, ema=0.5)))


def validation_draw(i, purpose):
    from mindglm import order

    return order.rng(0, 0, i, f"validation/{purpose}")


def test_objectives_own_step_is_called_and_its_changes_stay(tmp_path):
    objective = fake.Objective()
    seen = []

    def after_step(step, batches, gather):
        seen.append((step, len(batches[0]), gather))
        if step == 2:
            objective.model.idle.set_data(objective.model.idle * 0.0 + 7.0)
        return {"reseeded": step}

    objective.after_step = after_step
    trainer = fake.make_trainer(fake.make_recipe(tmp_path, steps=3), objective)
    trainer.fit()
    assert seen == [(1, 3, None), (2, 3, None), (3, 3, None)]
    assert [line["reseeded"] for line in lines(tmp_path)] == [1, 2, 3]
    saved = store.load(tmp_path / "checkpoint").tensors["model"]["idle"]
    assert abs(saved - 7.0).max() < 0.01  # decay alone moved it since


def test_frozen_parameters_stay_and_unknown_prefixes_are_refused(tmp_path):
    before = fake.Objective().model.up.asnumpy().copy()
    trainer = run(tmp_path / "a", steps=3, frozen=("up", "norm"))
    assert np.array_equal(fake.weights(trainer)["up"], before)
    assert {p.name for p in trainer.optimizer.params} == {"down", "idle"}
    with pytest.raises(UserError, match="no parameter begins with \\['upp'\\]"):
        run(tmp_path / "b", frozen=("upp",))
    with pytest.raises(UserError, match="leaves no parameter"):
        run(tmp_path / "c", frozen=("up", "norm", "down", "idle"))


def test_resume_is_refused_where_it_would_mix_runs(tmp_path):
    run(tmp_path, steps=2)
    with pytest.raises(UserError, match="resume_training is false"):
        run(tmp_path, steps=4, resume_training=False)
    with pytest.raises(UserError, match="changes\\s+model.frozen"):
        run(tmp_path, steps=4, frozen=("up",))
    longer = run(tmp_path, steps=4, seed=5)
    assert longer.counters.step == 4
    log = (tmp_path / "log" / "train.log").read_text()
    assert "changed since that checkpoint: seed: 0 -> 5" in log
    assert "changed since that checkpoint: runner_config.stop_step: 2 -> 4" in log


def test_batch_that_does_not_divide_is_refused(tmp_path):
    with pytest.raises(UserError, match="global_batch_size is 8, expected a multiple of 3"):
        run(tmp_path, accumulation=3)


def test_files_of_a_run(tmp_path):
    run(tmp_path, steps=4, monitor_config=schema.MonitorSection(log_interval=2, tensorboard=True))
    assert [line["step"] for line in lines(tmp_path)] == [2, 4]
    last = lines(tmp_path)[-1]
    assert set(last) == {"step", "loss", "grad_norm", "lr", "samples", "seconds", "skipped"} and last["samples"] == 32
    assert set(last["seconds"]) == {"data", "forward_backward", "reduce", "optimizer"}
    assert list((tmp_path / "tensorboard").glob("events*"))
    log = (tmp_path / "log" / "train.log").read_text()
    assert "{ Epoch:[  1/  1], step:[    4/    4], loss: " in log and "global_norm: [" in log
    common = store.load(tmp_path / "checkpoint").common
    assert common["global_step"] == common["step_num"] == 4 and common["global_batch_size"] == 8


def test_an_average_that_is_asked_for_on_resume_begins_at_the_weights_of_then(tmp_path):
    """Not at the random start that the optimizer was built with."""
    schedule = schema.LrScheduleSection(learning_rate=0.02, total_steps=4)
    for steps, ema in ((2, 0.0), (3, 0.75)):
        fake.make_trainer(fake.make_recipe(tmp_path, steps=steps, ema=ema, lr_schedule=schedule)).fit()
    two, three = (store.load(tmp_path / "checkpoint", step).tensors for step in (2, 3))
    for name, average in three["ema"].items():
        expected = 0.75 * two["model"][name] + 0.25 * three["model"][name]
        np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-6)
