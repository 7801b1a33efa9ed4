"""Rows of a rollout in compiled code: any lengths, prompts shared, on the CPU (see `native_step`).

Contract. As `HostRows`, and always invariant: what a row computes does not depend on the others, by
no bit. Weights and cache may be bfloat16; logits are float32 all the same.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ember.backends.compiled.native_step import WORTH_THREADS, NativeStep
from ember.backends.packing import PackedDecoder
from ember.backends.threads import fastest_threads
from ember.cache.slotted import Run, SlottedCache
from ember.engine.step import swapped_tables
from ember.model.architecture import Architecture


class NativeRows:
    """A step over one packed decoder and one cache; rows are the first ones of the cache.

    `tokens` (B,) are what `advance` runs, `logits` (B, V) what it leaves. `threads` is the number
    of torch's threads with which it is fastest.
    """

    def __init__(
        self, arch: Architecture, weights: PackedDecoder, cache: SlottedCache, positions: int
    ):
        """`positions`: the most tokens of a sequence."""
        self._weights, self._cache = weights, cache
        tables = swapped_tables(arch, positions, torch.float32, torch.device("cpu"))
        self._step = NativeStep(arch, weights, cache.rows, *tables, prompts=cache.prompts)
        self._tokens, self._starts, self._shared, self._own = torch.zeros(
            4, cache.slots, dtype=torch.long
        )
        self._rows = 0
        # On memory of its own: nobody's KV must be written to.
        own = torch.zeros_like(cache.rows[:, :, :, :, :1])
        trial = NativeStep(arch, weights, own, *tables, prompts=cache.prompts)
        with torch.inference_mode():
            self.threads = fastest_threads(lambda: trial(self._tokens, 0), WORTH_THREADS)

    @property
    def tokens(self) -> Tensor:
        return self._tokens[: self._rows]

    @property
    def logits(self) -> Tensor:
        return self._step.logits[: self._rows]

    def is_current(self) -> bool:
        """Whether the decoder's parameters still lie where this step reads them."""
        return self._weights.is_current()

    def join(self, run: Run, rows: int, logits: Tensor) -> None:
        """Appends rows of a prompt, whose last logits (1, V) they sample from first."""
        new = slice(self._rows, self._rows + rows)
        self._starts[new], self._shared[new], self._own[new] = run.start, run.length, 0
        self._rows += rows
        self.logits[new] = logits

    def leave(self, moves: Sequence[tuple[int, int]], rows: int) -> None:
        """Moves rows (from, to), in order; the first `rows` go on."""
        for source, target in moves:
            self._cache.move(source, target, int(self._own[source]))
            for each in (self._tokens, self._starts, self._shared, self._own, self._step.logits):
                each[target] = each[source]
        self._rows = rows

    def advance(self) -> None:
        """Runs the rows' tokens: their KV goes into the slots, the next logits into `logits`."""
        rows = slice(self._rows)
        self._step.run(self.tokens, self._starts[rows], self._shared[rows], self._own[rows])
        self._own[rows] += 1
