"""The ledger of a run under way: what mindglm.ledger needs from all ranks, and the file that rank 0 writes."""

import pathlib

import numpy as np
from mindspore import Parameter, Tensor
from mindspore import float32 as ms_float32

from mindglm.ledger import Chain, Digest, chain
from mindglm.ledger.digest import LIMBS
from mindglm.parallel import transport
from mindglm.recipe import differences
from mindglm.train.layout import Layout


class RunLedger:
    """Every rank calls `step`; rank 0 writes `<output_dir>/ledger.jsonl`."""

    def __init__(self, output_dir: pathlib.Path, recipe, layout: Layout, parameters: dict[str, Parameter],
                 first_step: int, files: dict[str, bytes], changes: list[differences.Change]):
        """first_step: steps already done, by the checkpoint that the run goes on from. files: what that checkpoint
        holds besides tensors; its ledger is continued. changes: how the recipe differs from the stored one.

        OSError on rank 0 when the disk takes no ledger."""
        self._layout, self._parameters = layout, parameters
        self._interval = recipe.monitor_config.weights_hash_interval
        self.notes: list[str] = []
        """Sentences on what was found at the start."""
        self._chain = None
        if transport.rank() > 0:
            return
        first = {"seed": recipe.seed, "global_batch_size": recipe.runner_config.global_batch_size,
                 "trainer": recipe.trainer.type}
        if first_step and chain.NAME not in files:
            first["first_step"] = first_step
        self._chain = Chain(output_dir / chain.NAME, files.get(chain.NAME), first)
        self._expected = dict(self._chain.expected)
        if self._chain.note:
            self.notes.append(self._chain.note)
        recorded = [change.text for change in changes if change.kind == differences.NUMERICS]
        if recorded:
            self._expected = {}
            self._chain.append({"step": first_step, "recipe": recorded})
        if self._chain.error is not None:
            raise self._chain.error

    def step(self, step: int, witness, result, lr: float) -> list[str]:
        """The line of a step that was done; sentences on what is wrong with it (rank 0). Called by all ranks."""
        hashed = self._interval > 0 and step % self._interval == 0
        data, draws, weights, replicas = self._digests(witness, hashed)
        if self._chain is None:
            return []
        body = {"step": step, "data": data.hex, "draws": draws.hex, "loss": result.loss,
                "grad_norm": result.grad_norm, "lr": lr}
        said = self._against_before(body)
        if hashed:
            body["weights"] = weights.hex
            if replicas != Digest(weights.limbs * self._layout.data_parallel):
                body["replicas"] = "differ"
                said.append(f"step {step}: the data-parallel ranks hold different weights: a fault of memory or of the "
                            "network; stop this run and resume it from a checkpoint before it")
        failed = self._chain.error is not None
        self._chain.append(body)
        if self._chain.error is not None and not failed:
            said.append(f"{self._chain.path} cannot be written ({self._chain.error}); its lines wait in memory")
        return said

    def _digests(self, witness, hashed: bool) -> list[Digest]:
        """Of the whole step: samples, draws, weights of one copy of the model, weights of all copies together."""
        limbs = np.zeros((4, LIMBS), np.int32)
        if self._layout.stage == 0:  # the other stages of a pipeline read the same samples
            limbs[:2] = witness.data.limbs, witness.draws.limbs
        if hashed:
            limbs[3] = weights_digest(self._parameters).limbs
            limbs[2] = limbs[3] if self._layout.data_index == 0 else 0
        if transport.world() > 1:
            summed = transport.all_reduce_sum(Tensor(limbs.reshape(-1)), tag="the ledger")
            limbs = summed.asnumpy().reshape(limbs.shape)
        return [Digest(row) for row in limbs]

    def _against_before(self, body: dict) -> list[str]:
        """A step that was done once before the run was interrupted must read and draw the same again."""
        before = self._expected.pop(body["step"], None)
        if before is None:
            return []
        other = [what for what, key in (("samples", "data"), ("random numbers", "draws")) if before[key] != body[key]]
        if other:
            return [f"step {body['step']} was done before the interruption with other {' and '.join(other)}: this run "
                    "does not go on as it began; see mindglm audit"]
        return []

    def checkpoint_files(self) -> dict[str, bytes]:
        """What a checkpoint keeps of it: the lines so far, on rank 0."""
        return {} if self._chain is None else {chain.NAME: self._chain.content}

    def close(self) -> None:
        if self._chain is not None:
            self._chain.close()


def weights_digest(parameters: dict[str, Parameter]) -> Digest:
    """Of names and values, as the model computes with them."""
    digest = Digest()
    for name, parameter in parameters.items():
        value = parameter if parameter.dtype == ms_float32 else parameter.astype(ms_float32)
        digest.add(name, value.asnumpy())
    return digest
