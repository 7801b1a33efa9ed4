"""What the scheduler asks of a backend: rows that decode together over a `SlottedCache`.

Contract. Rows in use are the first ones. Prompts are run by `forward`, then candidates `join` and
all rows take turns in `sample` and `advance`. Times and threads are the scheduler's business,
memory is the cache's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ember.backends.forward import Forward
from ember.backends.sampling import SamplingParams
from ember.cache.slotted import Run, SlottedCache

POLL_EVERY = {"cpu": 1, "cuda": 16}  # steps between polls of what was sampled; each poll waits


@dataclass(frozen=True)
class Candidate:
    """A row as a backend sees it: where its prompt's KV lies, how it samples, and its seed.

    `last`: the prompt's last token, where the run holds all tokens but that one: it is then the
    row's first token of its own, and its run the row's first step.
    """

    run: Run
    params: SamplingParams
    seed: int
    last: int | None = None


class Received(Protocol):
    """What rows sampled, on its way to the host."""

    def lists(self) -> tuple[list[list[int]], list[list[float]], list[list[float]], list | None]:
        """Waits; tokens, logprobs, raw logprobs by row and step, and alternatives if any."""


class Backend(Protocol):
    """One implementation of the layers, with its memory; see the module."""

    name: str
    cache: SlottedCache
    forward: Forward
    shares_prompts: bool  # rows read their prompt's KV in the arena; else each has a copy
    threads: int | None  # of torch, with which a step is fastest; None: whatever there are
    interval: int  # steps between polls of what was sampled
    lag: int  # polls that may be on their way while the next steps run
    tokens: Tensor  # (B,): what was sampled last and runs next
    logits: Tensor  # (B, V): what is sampled from next

    def join(self, candidates: Sequence[Candidate], logits: Tensor | None) -> None:
        """Appends rows of one prompt, which sample their first token from its logits (1, V); None:
        they run their `last` token first."""

    def leave(self, moves: Sequence[tuple[int, int]], rows: int) -> None:
        """Moves rows (from, to), in order; the first `rows` go on, the others end.

        Where none goes on, what was sampled since the last look is forgotten.
        """

    def sample(self) -> None:
        """Every row chooses a token from its logits."""

    def advance(self) -> None:
        """Every row runs the token that it chose last, or its prompt's last one.

        There is no row that has chosen none and has logits, but where rows share no prompts: those
        run nothing.
        """

    def receive(self) -> Received:
        """What was sampled since the last call."""


class StreamBackend(Backend, Protocol):
    """One that can also run a stream whose tokens drop out (see `ember.streaming.fast`)."""

    def reseat(self, run: Run, offset: int) -> None:
        """The only row, which has sampled nothing that has still to run, reads its prompt there
        from now on, the first of it at position `offset`; its own tokens begin anew.

        What was sampled since the last look is forgotten. No other row may join afterwards.
        """
