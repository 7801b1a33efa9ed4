"""A KV cache for rollouts: prompts of any length in one arena, a slot for what each row adds.

Contract. `prompts` holds the KV of prompts, each a run of neighbouring tokens that its candidates
read and nobody copies; `reserve` finds a run, `free` gives it back. `rows` holds what each row of
the batch generates, in slots of equal size; rows in use are the first ones, so that a batch is a
view, and `move` closes the hole that a finished row leaves. Keys are rotated for their positions in
the sequence. Nothing is allocated after construction.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ember.cache.base import BadCacheUse
from ember.cache.contiguous import ContiguousCache
from ember.cache.copying import copy_kv
from ember.measure.memory import NotEnoughMemory
from ember.model.architecture import Architecture

BLOCK = 64  # tokens to which sizes are rounded


@dataclass(frozen=True)
class Run:
    """Where a prompt lies in the arena, in tokens."""

    start: int
    length: int


@dataclass(frozen=True)
class Size:
    """Tokens of the arena, rows, and tokens of each row's slot."""

    prompt_tokens: int
    rows: int
    row_tokens: int


def size_for(
    lengths: Sequence[int],
    candidates: Sequence[int],
    row_tokens: int,
    *,
    rows: int,
    budget_tokens: int,
    token_bytes: int,
) -> Size:
    """What prompts of these lengths and numbers of candidates can use, within a budget.

    At most `rows` rows. Where the budget is short there are fewer, down to one; then fewer prompts
    lie in the arena at once. Raises `NotEnoughMemory` where the longest prompt and one row do not
    fit.
    """
    row_tokens, longest = _whole_blocks(row_tokens), max(lengths)
    while rows > 1 and rows * row_tokens + longest > budget_tokens:
        rows = rows // 2
    if rows * row_tokens + longest > budget_tokens:
        raise NotEnoughMemory(
            f"a prompt of {longest} tokens and a row of {row_tokens} need "
            f"{(longest + row_tokens) * token_bytes / 1e9:.2f} GB of KV, the cache may have "
            f"{budget_tokens * token_bytes / 1e9:.2f} GB.\nRaise cache_bytes, or shorten them."
        )
    # As many prompts as rows can belong to, and the next one, which takes the rows that end.
    together = -(-rows // min(candidates)) + 1
    wanted = sum(sorted(lengths, reverse=True)[:together])
    return Size(min(_whole_blocks(wanted), budget_tokens - rows * row_tokens), rows, row_tokens)


def _whole_blocks(tokens: int) -> int:
    """Rounded up, so that calls that differ a little use the same memory."""
    return -(-tokens // BLOCK) * BLOCK


class SlottedCache:
    """`prompts` (L, 2, Hkv, T, D) and `rows` (L, 2, R, Hkv, W, D)."""

    def __init__(
        self,
        arch: Architecture,
        *,
        prompt_tokens: int,
        rows: int,
        row_tokens: int,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        if min(prompt_tokens, rows, row_tokens) < 1:
            raise ValueError(
                f"prompt_tokens ({prompt_tokens}), rows ({rows}) and row_tokens ({row_tokens}) "
                "must be 1 or more"
            )
        layers, heads, dim = arch.num_layers, arch.num_kv_heads, arch.head_dim
        options = {"device": device, "dtype": dtype}
        # Zeros, not empty memory: kernels read whole blocks and mask what is beyond the length.
        self.prompts = torch.zeros((layers, 2, heads, prompt_tokens, dim), **options)
        self.rows = torch.zeros((layers, 2, rows, heads, row_tokens, dim), **options)
        self._runs: list[Run] = []  # in use, by start
        self._token_bytes = arch.kv_bytes_per_token(self.rows.element_size())

    @property
    def prompt_tokens(self) -> int:
        """Tokens that the arena can hold."""
        return self.prompts.shape[3]

    @property
    def slots(self) -> int:
        return self.rows.shape[2]

    @property
    def row_tokens(self) -> int:
        """The most tokens a row can have of its own."""
        return self.rows.shape[4]

    @property
    def bytes(self) -> int:
        """Memory reserved, whatever is in use."""
        return self.prompts.nbytes + self.rows.nbytes

    def bytes_used(self, rows: int) -> int:
        """Of the prompts that are stored now, and of the slots of so many rows."""
        tokens = sum(run.length for run in self._runs) + rows * self.row_tokens
        return tokens * self._token_bytes

    def holds(self, size: Size) -> bool:
        """Whether it is as large."""
        return (
            self.slots >= size.rows
            and self.row_tokens >= size.row_tokens
            and self.prompt_tokens >= size.prompt_tokens
        )

    def reserve(self, length: int) -> Run | None:
        """The first free run of `length` tokens, now in use; None where there is none."""
        if not 1 <= length <= self.prompt_tokens:
            raise BadCacheUse(
                f"a prompt of {length} tokens cannot lie in an arena of {self.prompt_tokens}.\n"
                "Make the cache with more prompt_tokens."
            )
        start = 0
        for place, run in enumerate([*self._runs, Run(self.prompt_tokens, 0)]):
            if run.start - start >= length:
                found = Run(start, length)
                self._runs.insert(place, found)
                return found
            start = run.start + run.length
        return None

    def trim(self, run: Run, length: int) -> Run:
        """Gives back what of a run lies beyond its first `length` tokens; the run from now on."""
        if not 1 <= length <= run.length:
            raise BadCacheUse(f"{run} cannot be cut to {length} tokens.\nKeep 1 to all of them.")
        kept = Run(run.start, length)
        self._runs[self._place(run)] = kept
        return kept

    def free(self, run: Run) -> None:
        """Gives a run back."""
        del self._runs[self._place(run)]

    def _place(self, run: Run) -> int:
        try:
            return self._runs.index(run)
        except ValueError:
            raise BadCacheUse(f"{run} is not in use.\nFree a run once.") from None

    def view(self, run: Run) -> ContiguousCache:
        """The run as a cache of one row, empty at first, over the same memory."""
        stop = run.start + run.length
        return ContiguousCache.over(self.prompts[:, :, :, run.start : stop].unsqueeze(2))

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copies the first `tokens` of a row's own tokens over another row's."""
        copy_kv(self.rows[:, :, target, :, :tokens], self.rows[:, :, source, :, :tokens])
