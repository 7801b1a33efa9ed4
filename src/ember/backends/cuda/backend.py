"""The rows of a rollout in kernels: no host between two tokens, whatever joins and leaves.

Contract. A `Backend`. Tokens, log-probabilities and positions live on the device; the host is told
by copies that the device makes while it goes on, and reads them one interval late. Which row
reads which prompt is a table that is filled anew when rows join or leave.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ember.backends.base import POLL_EVERY, Candidate
from ember.backends.cuda.step import KernelStep, Seat
from ember.backends.forward import Forward
from ember.cache.slotted import Run, SlottedCache
from ember.model.decoder import Decoder


class KernelBackend:
    """A `Backend` over a `KernelStep`."""

    name = "kernels"
    shares_prompts = True
    threads = None
    interval, lag = POLL_EVERY["cuda"], 1

    def __init__(
        self,
        decoder: Decoder,
        cache: SlottedCache,
        forward: Forward,
        capacity: int,
        *,
        graphs: bool,
    ):
        """`forward` holds the packed weights; `capacity`: the most tokens of a sequence."""
        self.cache, self.forward = cache, forward
        self.step = KernelStep(decoder.arch, forward.weights, cache.rows, capacity, cache.prompts)
        if cache.rows.is_cuda and graphs:
            self.step.capture()
        self._rows: list[tuple[Candidate, int]] = []  # and the steps sampled before it joined
        self._samples = self._ticks = 0  # in all, and since the last look
        self._moved = False

    @property
    def tokens(self) -> Tensor:
        return self.step.tokens[: len(self._rows)]

    @property
    def logits(self) -> Tensor:
        return self.step.logits[: len(self._rows)]

    def join(self, candidates: Sequence[Candidate], logits: Tensor | None) -> None:
        self._rows += [(one, self._samples) for one in candidates]
        if logits is None:
            self.tokens[-len(candidates) :] = candidates[0].last
        else:
            self.logits[-len(candidates) :] = logits
        self._moved = True

    def leave(self, moves: Sequence[tuple[int, int]], rows: int) -> None:
        for source, target in moves:
            self._rows[target] = one, before = self._rows[source]
            self.cache.move(source, target, own_tokens(one, self._samples - before))
            for state in (self.step.tokens, self.step.logits):
                state[target] = state[source]
        del self._rows[rows:]
        self._moved = True
        if not rows:
            self._rewind()  # nobody will ask

    def sample(self) -> None:
        self._arrange()
        self.step.sample()
        self._samples += 1
        self._ticks += 1

    def advance(self) -> None:
        self._arrange()
        self.step.advance()

    def reseat(self, run: Run, offset: int) -> None:
        self._arrange()  # how the row samples
        self._rewind()
        self.step.arrange([Seat(run.start, run.length, 0, offset)])

    def receive(self) -> "DeviceReceived":
        received = DeviceReceived(self.step.sampled(self._ticks, len(self._rows)))
        self._rewind()
        return received

    def _rewind(self) -> None:
        self.step.rewind()
        self._ticks = 0

    def _arrange(self) -> None:
        if not self._moved:
            return
        self._moved, rows = False, [one for one, _ in self._rows]
        sampled = [self._samples - before for _, before in self._rows]
        self.step.arrange(
            [
                Seat(one.run.start, one.run.length, own_tokens(one, n))
                for one, n in zip(rows, sampled, strict=True)
            ]
        )
        self.step.draw([one.params for one in rows], [one.seed for one in rows], sampled)


def own_tokens(row: Candidate, sampled: int) -> int:
    """A row's own tokens, the one that runs next counted: what it sampled, and its prompt's last
    one where the prompt's KV lacks it."""
    return sampled + (row.last is not None)


class DeviceReceived:
    """What was sampled, each (steps, B) or (steps, B, n), on its way to the host."""

    def __init__(self, sampled: Sequence[Tensor]):
        self._done = None
        if not sampled[0].is_cuda:
            self._found = [tensor.clone() for tensor in sampled]
            return
        self._found = [
            torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)
            for x in sampled
        ]
        self._done = torch.cuda.Event()
        self._done.record()

    def lists(self):
        if self._done is not None:
            self._done.synchronize()
        tokens, logprobs, raw, *more = (tensor.transpose(0, 1).tolist() for tensor in self._found)
        if not more:
            return tokens, logprobs, raw, None
        alternatives = [
            [tuple(zip(*step, strict=True)) for step in zip(*row, strict=True)]
            for row in zip(*more, strict=True)
        ]
        return tokens, logprobs, raw, alternatives
