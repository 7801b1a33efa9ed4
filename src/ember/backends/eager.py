"""The decoder itself as a backend: any architecture, number format and device.

Contract. Neighbouring rows of equal length run together as a span, through `Decoder.forward` over
a view of their slots. A row's slot holds a copy of its prompt's KV before what it generates, so a
slot is as long as a whole sequence, and the arena keeps a prompt only until its last candidate has
joined. With `invariant` every span is one row: no row's arithmetic then depends on another's, not
by a bit.
"""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from ember.backends.base import Candidate
from ember.backends.forward import Forward
from ember.backends.rows import TorchRows
from ember.cache.contiguous import ContiguousCache
from ember.cache.slotted import SlottedCache
from ember.model.decoder import Decoder


class EagerBackend(TorchRows):
    """A `Backend` by the decoder's own forward."""

    name = "eager"
    shares_prompts = False
    threads = None

    def __init__(
        self,
        decoder: Decoder,
        cache: SlottedCache,
        forward: Forward,
        *,
        invariant: bool = False,
    ):
        """`cache`: with slots for prompts and what follows them."""
        shape = (cache.slots, decoder.arch.vocab_size)
        logits = torch.zeros(shape, dtype=cache.rows.dtype, device=cache.rows.device)
        super().__init__(cache, logits, forward)
        self._decoder, self._invariant = decoder, invariant
        self._lengths: list[int] = []  # tokens in each row's slot
        self._waits: list[bool] = []  # whether a row has logits and no token to run
        self._spans: list[tuple[slice, ContiguousCache]] = []

    def join(self, candidates: Sequence[Candidate], logits: Tensor | None) -> None:
        run, first = candidates[0].run, len(self._lengths)
        new = slice(first, first + len(candidates))
        self.cache.rows[:, :, new, :, : run.length] = self.cache.view(run).kv
        self._lengths += [run.length] * len(candidates)
        self._waits += [logits is not None] * len(candidates)
        super().join(candidates, logits)
        self._spans = []

    def leave(self, moves: Sequence[tuple[int, int]], rows: int) -> None:
        for source, target in moves:
            self.cache.move(source, target, self._lengths[source])
            for each in (self._lengths, self._waits):
                each[target] = each[source]
        del self._lengths[rows:], self._waits[rows:]
        super().leave(moves, rows)
        self._spans = []

    def sample(self) -> None:
        super().sample()
        if any(self._waits):
            self._waits = [False] * len(self._waits)
            self._spans = []

    def advance(self) -> None:
        for span, cache in self._spans or self._cut():
            hidden = self._decoder(self._tokens[span, None], cache=cache)
            self._logits[span] = self._decoder.logits(hidden)[:, 0]
        self._lengths = [
            length + (not waits) for length, waits in zip(self._lengths, self._waits, strict=True)
        ]

    def _cut(self) -> list[tuple[slice, ContiguousCache]]:
        """Spans of rows that have a token to run, and their memory. They stay until rows join,
        leave or sample for the first time: lengths grow alike."""

        def alike(row: int) -> tuple:
            return self._waits[row], row if self._invariant else self._lengths[row]

        for (waits, _), same in groupby(range(len(self._lengths)), alike):
            if waits:
                continue
            first, *others = same
            span = slice(first, first + 1 + len(others))
            cache = ContiguousCache.over(self.cache.rows[:, :, span])
            cache.advance(self._lengths[first])
            self._spans.append((span, cache))
        return self._spans
