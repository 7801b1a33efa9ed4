"""Times of phases and of repeated calls, in milliseconds, on the CPU and on CUDA.

    clock = PhaseClock("cuda")
    with clock.phase("prefill"):
        ...
    clock.times_ms()  # {"prefill": 12.3}

On CUDA a phase is a pair of events in the current stream, so that measuring it does not make the
host wait; `times_ms` waits once, at the end. On the CPU it is `time.perf_counter`.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TypeVar

from ember.measure.device import synchronize
from ember.records.errors import EmberError

T = TypeVar("T")


class BadTiming(EmberError):
    """Phases that overlap, or nothing to time."""


class PhaseClock:
    """Accumulates the time of named phases; a phase may be entered any number of times."""

    def __init__(self, device: str = "cpu"):
        self.device = str(device)  # torch.device is welcome too
        self._cuda = self.device.startswith("cuda")
        self._open: str | None = None
        self.reset()

    def reset(self) -> None:
        """Forget all phases."""
        if self._open is not None:
            raise BadTiming(f"clock reset inside phase {self._open!r}\nreset it between phases")
        self._seconds: dict[str, float] = {}
        self._events: list[tuple] = []
        self._calls: dict[str, int] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the block's time to `name`. Phases are told apart, so they must not nest."""
        if self._open is not None:
            raise BadTiming(
                f"phase {name!r} begins inside phase {self._open!r}: its time would count twice\n"
                "end one phase before the next begins"
            )
        self._open = name
        self._calls[name] = self._calls.get(name, 0) + 1
        begin = mark(self.device)
        try:
            yield
        finally:
            end = mark(self.device)
            self._open = None
            if self._cuda:
                self._events.append((name, begin, end))
            else:
                self._seconds[name] = self._seconds.get(name, 0.0) + end - begin

    def times_ms(self) -> dict[str, float]:
        """Milliseconds of each phase so far, in the order they first began."""
        if self._events:
            synchronize(self.device)
            for name, begin, end in self._events:
                elapsed = begin.elapsed_time(end) / 1e3
                self._seconds[name] = self._seconds.get(name, 0.0) + elapsed
            self._events = []
        return {name: self._seconds[name] * 1e3 for name in self._calls if name in self._seconds}

    def calls(self) -> dict[str, int]:
        """How often each phase was entered."""
        return dict(self._calls)


def mark(device):
    """This moment in the device's work, for `between_ms`; the host does not wait."""
    if not str(device).startswith("cuda"):
        return time.perf_counter()
    import torch

    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def between_ms(marks: Sequence) -> list[float]:
    """Milliseconds from each mark to the next; waits for the last."""
    pairs = list(pairwise(marks))
    if isinstance(marks[0], float):
        return [(after - before) * 1e3 for before, after in pairs]
    marks[-1].synchronize()
    return [before.elapsed_time(after) for before, after in pairs]


def timed(call: Callable[[], T], device: str = "cpu") -> tuple[float, T]:
    """Milliseconds by the host's clock until the device is done, and what the call gives.

    What the host needs is in it, unlike in a phase on CUDA.
    """
    synchronize(device)
    began = time.perf_counter()
    result = call()
    synchronize(device)
    return (time.perf_counter() - began) * 1e3, result


def repeat(
    call: Callable[[], object], *, warmup: int, repeats: int, device: str = "cpu"
) -> list[float]:
    """Milliseconds of each of `repeats` calls, after `warmup` calls that are not recorded."""
    if repeats < 1 or warmup < 0:
        raise BadTiming(f"warmup {warmup}, repeats {repeats}\nrepeats must be at least 1")
    for _ in range(warmup):
        call()
    samples = []
    for _ in range(repeats):
        synchronize(device)
        clock = PhaseClock(device)
        with clock.phase("call"):
            call()
        samples.append(clock.times_ms()["call"])
    return samples
