"""The rows of a rollout in kernels: no host between two tokens, whatever joins and leaves.

Contract. A `rollout.Batch`. Tokens, log-probabilities and positions live on the device; the host is
told by copies that the device makes while it goes on, and looks at them one interval late. Which
row reads which prompt is a table that is filled anew when rows join or leave.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ember.backends.cuda.step import KernelStep, Seat
from ember.backends.forward import Prefill
from ember.backends.rows import LOOK_EVERY, PrefillInto, SlottedBatch, mark
from ember.cache.contiguous import ContiguousCache
from ember.cache.slotted import SlottedCache
from ember.engine.scheduler import Prompt, Row, compact


class DeviceBatch(SlottedBatch):
    """Rows of any prompts and lengths over a `SlottedCache`, on CUDA."""

    interval, lag = LOOK_EVERY["cuda"], 1

    def __init__(
        self,
        step: KernelStep,
        cache: SlottedCache,
        staging: ContiguousCache,
        run: Prefill,
        prefill: PrefillInto,
    ):
        """`staging`: where prompts are prefilled, always at the same place, so that the graphs of
        `run` come back; the arena gets a copy."""
        super().__init__(step, cache, run, prefill)
        self.step, self._staging = step, staging
        self._rows: list[Row] = []
        self._moved = False
        self._ticks = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        with torch.inference_mode():
            yield

    def prefill(self, prompt: Prompt, phase) -> tuple[Tensor, int]:
        self._staging.reset()
        logits, [cached] = self._prefill(self._run, [prompt.tokens], self._staging, phase)
        with phase("prefill"):
            self._cache.store(prompt.place, self._staging.segment(0, 0, len(prompt.tokens)))
        return logits, cached

    def join(self, prompt: Prompt, rows: Sequence[Row], logits: Tensor) -> None:
        first = len(self._rows)
        self.step.logits[first : first + len(rows)] = logits
        self._rows += rows
        self._moved = True

    def sample(self) -> None:
        self._arrange()
        self.step.sample()
        self._ticks += 1

    def advance(self) -> None:
        self._arrange()
        self.step.advance()

    def receive(self) -> "DeviceReceived":
        received = DeviceReceived(self.step.sampled(self._ticks, len(self._rows)))
        self.step.rewind()
        self._ticks = 0
        return received

    def leave(self, rows: Sequence[int]) -> None:
        before = list(self._rows)
        for source, target in compact(self._rows, rows):
            before[target] = before[source]
            self._cache.move(source, target, before[source].issued)
            for state in (self.step.tokens, self.step.logits):
                state[target] = state[source]
        self._moved = True

    def clear(self) -> None:
        for prompt in list(self._prompts):
            self.release(prompt)
        self._rows.clear()
        self._ticks = 0
        self.step.rewind()

    def mark(self):
        return mark(self.step.logits.device)

    def kv_bytes(self) -> tuple[int, int]:
        return self._cache.bytes_used(len(self._rows)), self._cache.bytes + self._staging.bytes

    def _arrange(self) -> None:
        if not self._moved:
            return
        self._moved, rows = False, self._rows
        self.step.arrange(
            [Seat(r.prompt.place.start, r.prompt.place.length, r.issued) for r in rows]
        )
        self.step.draw([r.params for r in rows], [r.seed for r in rows], [r.issued for r in rows])


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
