"""The ledger that a run writes, and what the audit of real runs finds."""

import dataclasses
import struct

import numpy as np
import pytest
from mindspore import Tensor
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from mindglm import ledger, order
from mindglm.cli.main import main
from mindglm.recipe import schema
from mindglm.train import board
from mindglm.train.ledger import weights_digest
from tests.train import fake
from tests.train.test_trainer import killed_after, lines, run

WATCHED = schema.MonitorSection(tensorboard=False, weights_hash_interval=2)


def told(folder):
    return (folder / "log" / "train.log").read_text()


def test_lines_of_a_run(tmp_path):
    """Every step's numbers as they were, a digest of the weights every second step, the ledger in the checkpoint."""
    trainer = run(tmp_path, steps=5, save=3, monitor_config=WATCHED)
    first, *steps = ledger.read(tmp_path / "ledger.jsonl")
    assert first == {"ledger": 1, "seed": 0, "global_batch_size": 8, "trainer": "glyph_alignment"}
    assert [line["step"] for line in steps if "weights" in line] == [2, 4]
    np.testing.assert_allclose([line["loss"] for line in steps], [line["loss"] for line in lines(tmp_path)], rtol=1e-7)
    assert len({line["data"] for line in steps}) == len({line["draws"] for line in steps}) == 5
    kept = tmp_path / "checkpoint" / "iteration_00000003" / "ledger.jsonl"
    assert (tmp_path / "ledger.jsonl").read_bytes().startswith(kept.read_bytes())
    assert len(ledger.read(kept)) == 4
    before = weights_digest(trainer.parameters)
    trainer.parameters["idle"].set_data(trainer.parameters["idle"] * 1.0000001)
    assert weights_digest(trainer.parameters) != before


def test_ledger_of_a_killed_and_resumed_run_is_that_of_the_straight_one(tmp_path, capsys):
    run(tmp_path / "a", steps=10, monitor_config=WATCHED)
    settings = fake.make_recipe(tmp_path / "b", steps=10, save=4, monitor_config=WATCHED)
    killed_after(fake.make_trainer(settings), 7)
    assert len(ledger.read(tmp_path / "b" / "ledger.jsonl")) == 8
    fake.make_trainer(settings).fit()
    assert (tmp_path / "b" / "ledger.jsonl").read_bytes() == (tmp_path / "a" / "ledger.jsonl").read_bytes()
    assert "before the interruption" not in told(tmp_path / "b")
    assert main(["audit", str(tmp_path / "a"), str(tmp_path / "b" / "checkpoint" / "iteration_00000008")]) == 0
    assert "A has steps 1 to 10, B steps 1 to 8" in capsys.readouterr().out


class Altered(fake.Dataset):
    """One sample has other numbers than it should."""

    def __init__(self, number):
        super().__init__()
        self._number = number

    def __getitem__(self, i):
        sample = super().__getitem__(i)
        return {**sample, "x": sample["x"] * 1.5} if i == self._number else sample


class Greedy(fake.Objective):
    """Draws one number more for sample 3."""

    def collate(self, samples, draw, training):
        for i, sample in enumerate(samples):
            if sample["index"] == 3:
                draw(i, "one more").random()
        return super().collate(samples, draw, training)


def perturbed(step):
    def change(trainer):
        compute = trainer._step

        def wrong(*given):
            if trainer.counters.step + 1 == step:
                up = trainer.parameters["up"]
                up.copy_(Tensor(up.asnumpy() * np.float32(1.01)))
            return compute(*given)

        trainer._step = wrong
    return change


@pytest.mark.parametrize("cause", ["data", "RNG", "numerics"])
def test_audit_finds_what_was_done_to_a_run(tmp_path, capsys, cause):
    """One sample altered, one draw too many, one tensor of the weights changed between two steps: step and cause."""
    run(tmp_path / "a", steps=6)
    step = next(step for step in range(1, 7) if 3 in ids_of(step))
    trainer = fake.make_trainer(
        fake.make_recipe(tmp_path / "b", steps=6), dataset=Altered(3) if cause == "data" else None,
        objective=Greedy() if cause == "RNG" else None)
    if cause == "numerics":
        step = 4
        perturbed(step)(trainer)
    trainer.fit()
    assert main(["audit", str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    assert f"the runs part at step {step}: {cause} first" in capsys.readouterr().out


def ids_of(step):
    """Samples of a step, from 1, of the fake runs here."""
    return order.batch_ids(0, step - 1, 8, 40)


def test_run_that_does_not_go_on_as_it_began_says_so(tmp_path):
    """A sample of step 7 altered between a kill after step 8 and the resume at step 5: told where it comes again."""
    settings = fake.make_recipe(tmp_path, steps=9, save=5)
    killed_after(fake.make_trainer(settings), 8)
    fake.make_trainer(settings, dataset=Altered(ids_of(7)[0])).fit()
    assert "step 7 was done before the interruption with other samples:" in told(tmp_path)
    assert told(tmp_path).count("before the interruption") == 1


def test_changed_numerics_are_recorded_and_safe_changes_are_not(tmp_path, capsys):
    run(tmp_path / "a", steps=6, save=3)
    settings = fake.make_recipe(tmp_path / "b", steps=6, save=3)
    killed_after(fake.make_trainer(settings), 3)
    changed = dataclasses.replace(settings, optimizer=schema.OptimizerSection(weight_decay=0.1, eps=1e-3),
                                  monitor_config=schema.MonitorSection(tensorboard=False, log_interval=2))
    fake.make_trainer(changed).fit()
    recorded = [line for line in ledger.read(tmp_path / "b" / "ledger.jsonl") if "recipe" in line]
    assert recorded == [{"step": 3, "recipe": ["optimizer.eps: 1e-08 -> 0.001"]}]
    assert "optimizer.eps: 1e-08 -> 0.001. This changes numerics" in told(tmp_path / "b")
    assert "monitor_config.log_interval: 1 -> 2 (safe" in told(tmp_path / "b")
    assert main(["audit", str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    text = capsys.readouterr().out
    assert "B was resumed after step 3 with another recipe" in text and "numerics first" in text
    assert "their recipes differ in optimizer.eps" in text


def test_full_disk_stops_neither_metrics_nor_ledger(tmp_path):
    """/dev/full in the place of metrics, ledger and TensorBoard's events: each is said once, training goes on, and once
    there is room again no line of the first two is lost."""
    settings = fake.make_recipe(tmp_path, steps=30, monitor_config=schema.MonitorSection())
    trainer = fake.make_trainer(settings)
    files = [trainer.metrics._file, trainer._ledger._chain._file]
    real = [file._file for file in files]
    records = trainer.metrics._board._writer._py_recordio_writer
    due = trainer._due

    def fill_and_free():
        due()
        if trainer.counters.step == 2:
            records._writer = open("/dev/full", "wb", buffering=0)
        for file, descriptor in zip(files, real):
            if trainer.counters.step in (2, 4):
                file._file = open("/dev/full", "ab", buffering=0) if trainer.counters.step == 2 else descriptor

    trainer._due = fill_and_free
    trainer.fit()
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 31))
    assert len(ledger.read(tmp_path / "ledger.jsonl")) == 31
    assert told(tmp_path).count("cannot be written ([Errno 28]") == 3
    assert "TensorBoard's events end here" in told(tmp_path)


def test_full_disk_under_the_log_is_said_once(tmp_path, capfd):
    """No traceback a line, and closing it does not bring the run down."""
    trainer = fake.make_trainer(fake.make_recipe(tmp_path, steps=5))
    handler, = trainer.metrics._logger.handlers
    handler.setStream(open("/dev/full", "w"))
    trainer.fit()
    told = capfd.readouterr().err
    assert told.count("train.log cannot be written ([Errno 28]") == 1 and "Traceback" not in told


def test_tensorboard_reads_what_the_board_writes(tmp_path):
    """Scalars, a picture, and the mark that hides later steps of older files, by the records' own checksums."""
    writer = board.Board(tmp_path / "tensorboard", 5)
    writer.scalar("train/loss", 0.5, 6)
    writer.image("samples", np.zeros((4, 6, 3), np.uint8), 7)
    writer.close()
    path, = (tmp_path / "tensorboard").iterdir()
    data, events = path.read_bytes(), []
    while data:
        length, = struct.unpack("<Q", data[:8])
        body = data[12:12 + length]
        sums = masked_crc32c(data[:8]), masked_crc32c(body)
        assert sums == struct.unpack("<II", data[8:12] + data[12 + length:][:4])
        events.append(Event.FromString(body))
        data = data[16 + length:]
    version, start, scalar, image = events
    assert version.file_version == "brain.Event:2" and start.step == 6 and start.session_log.status == 1
    assert (scalar.step, scalar.summary.value[0].tag, scalar.summary.value[0].simple_value) == (6, "train/loss", 0.5)
    assert image.step == 7 and image.summary.value[0].image.width == 6


@pytest.mark.parametrize("content", [None, b"\xff"], ids=["gone", "altered"])
def test_audit_does_without_a_recipe_that_is_damaged(tmp_path, capsys, content):
    for name in "ab":
        fake.make_trainer(fake.make_recipe(tmp_path / name, steps=3)).fit()
    path = tmp_path / "a" / "checkpoint" / "iteration_00000003" / "recipe.yaml"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert main(["audit", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "recipe.yaml: damaged" in capsys.readouterr().out
