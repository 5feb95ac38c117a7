"""Sample order and random draws as pure functions of (seed, epoch, step, sample id), never of the rank (NumPy only)."""

from mindglm.order.buckets import bucket_batch, bucket_turn, mix
from mindglm.order.randomness import initial_values, rng
from mindglm.order.samples import batch_ids, epoch_order

__all__ = ["batch_ids", "bucket_batch", "bucket_turn", "epoch_order", "initial_values", "mix", "rng"]
