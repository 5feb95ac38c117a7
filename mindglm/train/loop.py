"""The training loop, the same for every recipe."""

import contextlib
import math
import pathlib
import time

import numpy as np

from mindglm.errors import EXIT_INTERRUPTED, UserError
from mindglm.parallel import transport
from mindglm.train import capsule, precision, samples, state, writable
from mindglm.train import layout as layouts
from mindglm.train.batches import Batches, validation_batches
from mindglm.train.ema import Ema
from mindglm.train.layout import Layout
from mindglm.train.ledger import RunLedger
from mindglm.train.metrics import Metrics
from mindglm.train.optimizer import build as build_optimizer
from mindglm.train.saver import Saver
from mindglm.train.signals import EXIT_TERMINATED, StopRequests
from mindglm.train.step import build_step, learning_rates
from mindglm.train.weights import all_parameters, trained_parameters


class Trainer:
    """Trains objective.network on `dataset` until recipe.runner_config.stop_step.

    recipe: a mindglm.recipe Recipe. recipe_text: the same as YAML, kept in every checkpoint. held_out may be None.
    Construction resumes from the newest checkpoint of recipe.output_dir, if there is one; fallback: from the one before
    it where that is damaged.
    """

    def __init__(self, recipe, recipe_text: str, objective, dataset, held_out=None, notes: tuple[str, ...] = (),
                 layout: Layout | None = None, fallback: bool = False):
        self.recipe, self.recipe_text, self.objective = recipe, recipe_text, objective
        self.layout = layout or layouts.here(recipe.parallel_config)
        self._held_out = held_out
        runner = recipe.runner_config
        self.output_dir = pathlib.Path(recipe.output_dir)
        self.leads = transport.rank() == 0
        objective.network.set_train(True)
        self.parameters = all_parameters(objective)
        precision.apply(self.parameters.values(), recipe.precision)
        self.optimizer = build_optimizer(trained_parameters(objective, recipe.model.frozen), recipe.optimizer,
                                         self.layout, recipe.parallel_config.optimizer_shard)
        self.ema = Ema(self.optimizer, recipe.ema.decay, recipe.ema.warmup_steps) if recipe.ema.decay > 0 else None
        checkpoints = self.output_dir / "checkpoint"
        resumed = state.resume(checkpoints, recipe, recipe_text, self.parameters, self.optimizer, self.ema, fallback)
        self.counters, self._saver = resumed.counters, Saver(checkpoints, recipe, recipe_text)
        self._saver.prepare(self.parameters, self.optimizer, self.ema)
        self._step = build_step(recipe, objective, self.optimizer)
        self.batches = Batches(objective, dataset, recipe.seed, runner.global_batch_size, recipe.micro_batches,
                                self.layout)
        with writable.together(self.output_dir):
            self._rate = learning_rates(recipe)  # mindformers opens its log files
            self.metrics = Metrics(self.output_dir, recipe, self.counters.step, self.leads,
                                   resumed.common.get("metrics_lines"))
            self._ledger = RunLedger(self.output_dir, recipe, self.layout, self.parameters, self.counters.step,
                                     resumed.files, resumed.changes)
        self._validation = (0, math.nan)  # the last one: step and loss
        done, stop = self.counters.step, runner.stop_step
        over = [f"nothing to train: step {done} is done, runner_config.stop_step is {stop}"] if done >= stop else []
        self._say([*notes, *resumed.notes, *self._ledger.notes, self._description(), *over])

    def _say(self, notes: list[str]) -> None:
        for note in notes:
            self.metrics.say(note)

    def _description(self) -> str:
        space, layout = self.optimizer.space, self.layout
        owned = f", {space.owned_size:,} elements of optimizer state a rank (ZeRO-1)" if space.shards > 1 else ""
        held = f" of stage {layout.stage + 1} of {layout.stages}" if layout.stages > 1 else ""
        return (f"{self.optimizer.size:,} trained parameters in {len(self.optimizer.params)} tensors{held}{owned}, "
                f"{transport.world()} process(es)")

    def fit(self) -> None:
        """Train to the end. SystemExit(143 | 130) after saving when a signal asked to stop.

        UserError when the last checkpoint cannot be written.
        """
        stop = self.recipe.runner_config.stop_step
        with contextlib.ExitStack() as last:  # each is closed, whatever befalls the others
            for part in (self.metrics, self._ledger, self.batches, self._saver):
                last.callback(part.close)
            with StopRequests() as requests:
                while self.counters.step < stop:
                    result = self._one_step(self._rate(self.counters.step), requests)
                    terminated, interrupted = result.terminated, result.interrupted
                    if transport.world() == 1:  # alone there is nobody to agree with: no need to wait for the next step
                        terminated, interrupted = requests.flags
                    if terminated or interrupted:
                        self._leave(interrupted)
                self._save(last=True)  # a signal does not cut the last save short
                terminated, interrupted = transport.gather(np.array([requests.flags], np.int32)).any(0)
            if self._saver.failure:
                raise UserError(f"{self._saver.failure}. The steps since then are lost unless it can be written: make "
                                "room and start the same command again")
            if terminated or interrupted:
                _exit(interrupted)

    def _one_step(self, lr: float, requests: StopRequests):
        """One optimizer step and whatever is due after it."""
        runner, counters = self.recipe.runner_config, self.counters
        self._say(self._saver.poll())
        start = time.perf_counter()
        micro_batches, witness = self.batches.take(counters.step, last=counters.step + 1 == runner.stop_step)
        waited = time.perf_counter() - start
        result = self._step(micro_batches, lr, counters.updates + 1, requests)
        counters.step += 1
        extra = {}
        if result.applied:
            counters.updates += 1
            counters.skipped_in_row = 0
            extra = self._after_step(micro_batches)
            if self.ema is not None:
                self.ema.update(counters.step)
        else:
            counters.skipped += 1
            counters.skipped_in_row += 1
        self.metrics.step({
            "step": counters.step, "loss": result.loss, "grad_norm": result.grad_norm, "lr": lr,
            "samples": counters.step * runner.global_batch_size, "seconds": {"data": waited, **result.seconds},
            "skipped": counters.skipped, **self.batches.size(counters.step - 1), **extra})
        for fault in self._ledger.step(counters.step, witness, result, lr):
            self.metrics.say(fault)
        self._check_skipped(result, lr, micro_batches, witness)
        self._due()
        return result

    def _after_step(self, micro_batches) -> dict:
        """The objective's own work after an update, e.g. re-seeding of unused codes; numbers for the metrics."""
        if not hasattr(self.objective, "after_step"):
            return {}
        gather = transport.gather if transport.world() > 1 else None
        info = self.objective.after_step(self.counters.step, micro_batches, gather)
        self.optimizer.absorb()
        return info

    def _check_skipped(self, result, lr: float, micro_batches, witness) -> None:
        limit = self.recipe.runner_wrapper.max_skipped_steps
        if self.counters.skipped_in_row > limit:
            self._say(self._saver.finish())  # `close` cannot: of several ranks, rank 0 commits when all have agreed
            kept = capsule.write(self, result, lr, micro_batches, witness, self._ledger.checkpoint_files())
            raise UserError(
                f"step {self.counters.step}: loss {result.loss} and gradient norm {result.grad_norm} are not finite "
                f"for {self.counters.skipped_in_row} steps in a row (runner_wrapper.max_skipped_steps is {limit}). The "
                f"weights did not change in them. {kept}. The same command goes on from the newest checkpoint")

    def _due(self) -> None:
        """Validation, pictures and checkpoints that this step asks for."""
        step, recipe = self.counters.step, self.recipe
        if self._held_out is not None and _every(step, recipe.validation.eval_step_interval):
            self._validation = step, self.validate()
            self.metrics.validation(*self._validation)
        if _every(step, recipe.monitor_config.sample_step_interval):
            with self.exported_weights():  # by all ranks, as each may hold a part of the average
                draws = self.layout.data_index == 0  # with the other stages of its pipeline
                pixels = samples.picture(self.objective, recipe, self._held_out, self._step.predict) if draws else None
            if pixels is not None and self.leads:
                self.metrics.picture(step, self.output_dir / "samples" / f"step_{step:06d}.png", pixels)
        if _every(step, recipe.checkpoint.save_checkpoint_steps):
            self._save()

    def exported_weights(self):
        """Context in which the model holds the weights an export would have: the average, where one is kept."""
        return self.ema.in_place() if self.ema is not None else contextlib.nullcontext()

    def validate(self) -> float:
        """Loss of the exported weights on held-out samples, under draws that are the same at every step."""
        batches = validation_batches(self.objective, self._held_out, self.recipe.seed,
                                     self.recipe.validation.eval_samples, self.batches.micro_size, self.layout)
        with self.exported_weights():
            sums = [transport.sum_scalar(number) for number in self._step.evaluate(batches)]
        return sums[0] / sums[1] if sums[1] > 0 else math.nan

    def component_tensors(self) -> dict:
        """What the weights now held give for an export, on rank 0: {released name: array}. Called by all ranks."""
        here = {name: tensor.float().asnumpy() for name, tensor in self.objective.component_tensors().items()}
        return state.joined(here, self.layout)

    def _save(self, last: bool = False) -> None:
        """The checkpoint of this step. last: no step follows, so it is waited for."""
        step, loss = self._validation
        extra = {"validation_loss": loss if step == self.counters.step and math.isfinite(loss) else None,
                 "metrics_lines": self.metrics.lines}
        self._say(self._saver.save(self.counters, self.parameters, self.optimizer, self.ema,
                                   self._ledger.checkpoint_files(), extra))
        if last:
            self._say(self._saver.finish())

    def _leave(self, interrupted: bool) -> None:
        self._save(last=True)
        kept = self._saver.failure or "the checkpoint is written"
        self.metrics.say(f"stopped by a signal after step {self.counters.step}; {kept}; start the same command again "
                         "to go on")
        _exit(interrupted)


def _exit(interrupted: bool) -> None:
    """End the process as one that a signal asked to stop; on all ranks."""
    transport.finish()
    raise SystemExit(EXIT_INTERRUPTED if interrupted else EXIT_TERMINATED)


def _every(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0
