"""Rank 0 waits for what rank 1 never sends: the error must say so."""

import sys
import time

from mindglm.parallel import transport

if __name__ == "__main__":
    rank, _ = transport.init()
    import mindspore as ms

    from mindglm.parallel.transport_peers import Peers

    transport.barrier()
    if rank == 1:
        time.sleep(60)
        sys.exit(0)
    peers = Peers()
    peers.post((((3,), ms.float32),), 1, "activations for chunk 0, micro-batch 7")
    peers.take(1, "activations for chunk 0, micro-batch 7")
