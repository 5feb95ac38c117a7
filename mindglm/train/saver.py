"""Writes the checkpoints of a run while it trains: at once, or in a thread of its own (checkpoint.async_save).

Every rank writes the parts of the global tensors that it owns; when all have, rank 0 adds metadata.json and renames the
folder. The ranks agree by collectives on the main thread, at the head of a step. The thread copies the state, which
does not change before the next update of the weights, and touches the disk: a step waits only if its update comes
before the copy is made.
"""

import pathlib
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np

from mindglm.checkpoint import store
from mindglm.parallel import transport
from mindglm.train import state

DONE, DISK, FAULT = range(3)


class Saver:
    """All ranks call `save`, `poll` and `finish` at the same places of the run. Each returns sentences to say.

    A disk that is full, read-only or gone does not end the run: it is said, `failure` holds it, and the checkpoints
    that were there stay. Any other error is raised by the next of these calls, on the rank that it befell and on all
    others.
    """

    def __init__(self, root: pathlib.Path, recipe, recipe_text: str):
        """root: <output_dir>/checkpoint. recipe_text: the resolved recipe, kept in every checkpoint."""
        self._root, self._recipe, self._recipe_text = root, recipe, recipe_text
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._copies: dict[str, np.ndarray] = {}
        self._work: Future | None = None
        self._commits = False
        """Whether the work under way is the last of a checkpoint, rank 0's commit."""
        self.failure: str | None = None
        """Why the last checkpoint could not be written; None when it was."""

    def prepare(self, parameters: dict, optimizer, ema) -> None:
        """Take the memory of the copies in the background, which is slower than to copy: the first save need not."""
        if self._recipe.checkpoint.async_save:
            state.owned_parts(parameters, optimizer, ema, self._place_of)
            places = list(self._copies.values())
            self._thread.submit(lambda: [place.fill(1) for place in places])

    def save(self, counters, parameters: dict, optimizer, ema, files: Mapping[str, bytes] | None = None,
             extra: Mapping | None = None) -> list[str]:
        """Write the checkpoint of counters.step, unless it is there.

        In the background: the state is lent to the thread, and the optimizer's next change waits until it is copied.
        files, extra: of rank 0, as store.save's files and further numbers of common.json. A save that is still under
        way is waited for.
        """
        said = self._settle()
        self._step, self._folder = counters.step, store.staging(self._root, counters.step)
        is_there, fault = transport.broadcast_object(self._begin() if transport.rank() == 0 else None)
        if is_there:
            return said
        if fault:
            return [*said, self._failed(fault)]
        lent, copied = [], threading.Event()

        def lend(name: str, array: np.ndarray) -> np.ndarray:
            place = self._place_of(name, array)
            lent.append((place, array))
            return place

        hold = lend if self._recipe.checkpoint.async_save else _as_it_is
        parts = state.owned_parts(parameters, optimizer, ema, hold)
        self._contents = store.texts(state.common_of(counters, self._recipe, extra), self._recipe_text, files)
        self._commits = transport.world() == 1
        self._work = self._thread.submit(self._write, parts, lent, copied)
        optimizer.before_change = copied.wait
        return said if self._recipe.checkpoint.async_save else said + self._settle()

    @property
    def busy(self) -> bool:
        """Whether a save is under way."""
        return self._work is not None

    def poll(self) -> list[str]:
        """Once a step: take note of what the background has done. Nothing is exchanged when nothing is under way."""
        if self._work is None or not transport.gather(np.array([self._work.done()], np.int32)).all():
            return []
        outcomes = transport.gather_objects(_outcome(self._work))
        work, self._work = self._work, None
        for rank, (code, told) in enumerate(outcomes):
            if code == FAULT:
                self._abandon()
                if outcomes[transport.rank()][0] == FAULT:
                    work.result()  # raises it
                raise RuntimeError(f"the checkpoint of step {self._step} could not be written by rank {rank}: {told}")
        full = [f"rank {rank}: {told}" if len(outcomes) > 1 else told
                for rank, (code, told) in enumerate(outcomes) if code == DISK]
        if full:
            self._abandon()
            return [self._failed("; ".join(full))]
        if self._commits:
            self.failure = None
            return [told for _, told in outcomes if told]
        self._commits = True
        listings = [listing for _, listing in outcomes]
        self._work = self._thread.submit(self._commit, listings if transport.rank() == 0 else None)
        return []

    def finish(self) -> list[str]:
        """Wait until nothing is under way."""
        return self._settle()

    def close(self) -> None:
        """Let the thread end what it does, whatever became of the run; the ranks agree on nothing any more."""
        self._thread.shutdown()
        work, self._work = self._work, None
        code, told = (DONE, None) if work is None else _outcome(work)
        if code == FAULT:
            work.result()  # raises it
        if code == DISK:
            print(f"mindglm: the checkpoint of step {self._step} could not be written ({told})", file=sys.stderr,
                  flush=True)

    def _settle(self) -> list[str]:
        said = []
        while self._work is not None:
            wait([self._work])
            said += self.poll()
        return said

    def _begin(self) -> tuple[bool, str]:
        """On rank 0: make the staging folder. (whether the checkpoint stands already, what the disk had against it)"""
        try:
            if self._step in store.steps(self._root):
                return True, ""
            store.begin(self._folder)
        except OSError as error:
            return False, f"{type(error).__name__}: {error}"
        return False, ""

    def _write(self, parts: Mapping, lent: list[tuple[np.ndarray, np.ndarray]], copied: threading.Event):
        """lent: (place of the copy, array that may change once `copied` is set), emptied as it is copied."""
        try:
            while lent:
                np.copyto(*lent.pop())
        finally:
            copied.set()
        listing = store.write_part(self._folder, parts, self._recipe.checkpoint.prefix, transport.rank(),
                                   transport.world())
        return self._commit([listing]) if self._commits else listing

    def _commit(self, listings: list | None) -> str:
        """On rank 0: the checkpoint in its place, older ones removed; what went wrong with the latter."""
        if listings is None:
            return ""
        section = self._recipe.checkpoint
        final = store.commit(self._folder, listings, self._contents)
        try:
            store.tidy(self._root, self._step, section.keep_checkpoint_max, section.keep_best_max)
        except OSError as error:
            return f"{final} is written, but older checkpoints could not be removed ({error})"
        return ""

    def _place_of(self, name: str, array: np.ndarray) -> np.ndarray:
        """Where the array is copied to: memory that training does not change, taken once and kept for all saves."""
        place = self._copies.get(name)
        if place is None or place.shape != array.shape or place.dtype != array.dtype:
            place = self._copies[name] = np.empty_like(array)
        return place

    def _failed(self, why: str) -> str:
        last = transport.broadcast_object(self._last() if transport.rank() == 0 else None)
        self.failure = f"the checkpoint of step {self._step} could not be written ({why}); {last}"
        return f"{self.failure}. Training goes on; make room for the next one"

    def _last(self) -> str:
        """Which checkpoint there is, in words."""
        try:
            there = store.steps(self._root)
        except OSError as error:
            return f"which ones are there cannot be seen ({error})"
        return f"the newest is still that of step {there[-1]}" if there else "there is none yet"

    def _abandon(self) -> None:
        if transport.rank() == 0:
            store.abandon(self._folder)


def _as_it_is(name: str, array: np.ndarray) -> np.ndarray:
    return array


def _outcome(work: Future) -> tuple[int, object]:
    """What became of finished work, to be told to the other ranks."""
    error = work.exception()
    if error is None:
        return DONE, work.result()
    return (DISK if isinstance(error, OSError) else FAULT), f"{type(error).__name__}: {error}"
