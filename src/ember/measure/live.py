"""Bytes of the tensors that a piece of code holds at once.

    with live_tensors() as live:
        decoder(tokens)
    live.peak_bytes

Counts every tensor memory that an operation makes inside the block, until nothing refers to it any
more. Unlike a process's resident memory it knows nothing of allocators and libraries' workspace, so
on a CPU it is what a closed form can be compared with; on CUDA, ask the allocator.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager


class Live:
    """Bytes alive now, and at most so far."""

    def __init__(self):
        self.bytes = self.peak_bytes = 0
        self._known: set[int] = set()

    def add(self, storage) -> None:
        """Count a tensor's memory, once however many tensors share it."""
        if id(storage) in self._known:
            return
        self._known.add(id(storage))
        self.bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self.bytes)
        weakref.finalize(storage, self._remove, id(storage), storage.nbytes())

    def know(self, storage) -> None:
        """Never count this memory: it was there before."""
        self._known.add(id(storage))

    def _remove(self, name: int, size: int) -> None:
        self._known.discard(name)
        self.bytes -= size


@contextmanager
def live_tensors(before=()) -> Iterator[Live]:
    """Count tensors made in the block; `before`: tensors whose memory is not counted."""
    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    live = Live()
    kept = [tensor.untyped_storage() for tensor in before]
    for storage in kept:
        live.know(storage)

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor):
                    live.add(leaf.untyped_storage())
            return result

    with Counting():
        yield live
