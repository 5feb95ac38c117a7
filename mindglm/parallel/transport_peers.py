"""Point-to-point transfers between two ranks, in the order of a table.

Both sides of a pair follow one order, so no tag travels with a message: it serves the error messages. What differs by
backend: on HCCL a receive is posted at its place in the table and awaited when its value is used. On MindSpore's CPU
backend a receive blocks and a send is buffered, so a receive is put off until its value is used; earlier messages of
the same peer are taken in passing and kept.
"""

from collections import deque

from mindspore import Tensor, mint
from mindspore.mint.distributed import distributed

from mindglm import ops
from mindglm.parallel import transport
from mindglm.parallel.transport import named_failures

KEPT = 16

Shape = tuple[tuple[int, ...], object]
"""(shape, dtype) of a Tensor."""


class Peers:
    """Sends to and receives from other ranks of the world; a message is a tuple of Tensors."""

    def __init__(self):
        # Without a name of its own for it, the point-to-point layer looks for its rank in HCCL's world on CPU too.
        distributed._GROUP_RANK_CACHE.setdefault("hccl_world_group", transport.rank())
        self._posts_early = ops.DEVICE == "ascend"
        self._sending: deque[tuple] = deque()  # handles and the tensors that must live until they are done
        self._posted: dict[int, deque] = {}  # per peer: (key, buffers, handles)
        self._arrived: dict[tuple[int, str], tuple[Tensor, ...]] = {}

    def send(self, tensors: tuple[Tensor, ...], peer: int, tag: str) -> None:
        """Start to send. Waits for older messages: no more than KEPT Tensors are held for sending."""
        with named_failures("send", tag, [peer]):
            for tensor in tensors:
                if tensor.size:
                    tensor = tensor.contiguous()
                    self._sending.append((distributed.isend(tensor, peer), tensor, peer, tag))
        self._wait_for_sends(KEPT)

    def post(self, shapes: tuple[Shape, ...], peer: int, tag: str) -> None:
        """Say that the next message of `peer` is `tag` and has Tensors of these shapes."""
        buffers = tuple(mint.zeros(shape, dtype=dtype) for shape, dtype in shapes)
        queue = self._posted.setdefault(peer, deque())
        queue.append((tag, buffers, self._receive(buffers, peer, tag) if self._posts_early else None))

    def take(self, peer: int, tag: str) -> tuple[Tensor, ...]:
        """The message `tag`, posted before; waits for it."""
        queue = self._posted[peer]
        while (peer, tag) not in self._arrived:
            assert queue, f"rank {transport.rank()}: {tag} from rank {peer} was not posted"
            name, buffers, handles = queue.popleft()
            handles = self._receive(buffers, peer, name) if handles is None else handles
            with named_failures("receive", name, [peer]):
                for handle in handles:
                    handle.wait()
            self._arrived[peer, name] = buffers
        return self._arrived.pop((peer, tag))

    def _receive(self, buffers: tuple[Tensor, ...], peer: int, tag: str) -> list:
        with named_failures("receive", tag, [peer]):
            return [distributed.irecv(buffer, peer) for buffer in buffers if buffer.size]

    def finish(self) -> None:
        """Wait until everything that was sent has left. AssertionError when a posted message was not taken."""
        self._wait_for_sends(0)
        left = [name for queue in self._posted.values() for name, *_ in queue] + [key[1] for key in self._arrived]
        assert not left, f"rank {transport.rank()}: posted and never taken: {left[:5]}"

    def _wait_for_sends(self, keep: int) -> None:
        while len(self._sending) > keep:
            handle, _, peer, tag = self._sending.popleft()
            with named_failures("send", tag, [peer]):
                handle.wait()
