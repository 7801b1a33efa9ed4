"""Rows of a rollout in compiled code: any lengths, prompts shared, on the CPU (see `native_step`).

Contract. What a row computes does not depend on the others, not by a bit. Weights and cache may be
bfloat16; logits are float32 all the same.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ember.backends.base import Candidate
from ember.backends.compiled.native_step import NativeStep
from ember.backends.forward import Forward
from ember.backends.packing import PackedDecoder
from ember.backends.rows import TorchRows
from ember.backends.threads import fastest_threads
from ember.cache.slotted import Run, SlottedCache
from ember.model.decoder import Decoder


class CompiledBackend(TorchRows):
    """A `Backend` over a `NativeStep`, with the number of threads that is fastest here."""

    name = "compiled"
    shares_prompts = True

    def __init__(self, decoder: Decoder, cache: SlottedCache, forward: Forward, capacity: int):
        """`capacity`: the most tokens of a sequence."""
        arch, weights = decoder.arch, PackedDecoder(decoder)
        self._step = NativeStep(arch, weights, cache.rows, capacity, prompts=cache.prompts)
        super().__init__(cache, self._step.logits, forward)
        seats = torch.zeros(4, cache.slots, dtype=torch.long)
        self._starts, self._shared, self._own, self._offsets = self._seats = seats
        # On memory of its own: nobody's KV must be written to.
        own = torch.zeros_like(cache.rows[:, :, :, :, :1])
        trial = NativeStep(arch, weights, own, capacity, prompts=cache.prompts)
        self.threads = fastest_threads(lambda: trial(self._tokens, 0))

    def join(self, candidates: Sequence[Candidate], logits: Tensor | None) -> None:
        run, first = candidates[0].run, len(self.tokens)
        super().join(candidates, logits)
        new = slice(first, len(self.tokens))
        self._seat(new, run, 0)

    def leave(self, moves: Sequence[tuple[int, int]], rows: int) -> None:
        for source, target in moves:
            self.cache.move(source, target, int(self._own[source]))
            self._seats[:, target] = self._seats[:, source]
        super().leave(moves, rows)

    def advance(self) -> None:
        rows = slice(len(self.tokens))
        self._step.run(self.tokens, *self._seats[:, rows])
        self._own[rows] += 1

    def reseat(self, run: Run, offset: int) -> None:
        self._seat(0, run, offset)
        self._taken.clear()

    def _seat(self, rows: int | slice, run: Run, offset: int) -> None:
        """Rows that read a prompt and have nothing of their own yet."""
        seat = torch.tensor([run.start, run.length, 0, offset])
        self._seats[:, rows] = seat[:, None] if isinstance(rows, slice) else seat
