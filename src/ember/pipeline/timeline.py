"""When each stage did what, on one clock for both processes.

Contract. Marks are taken while a run is under way, at the cost of a host clock's reading or of a
device event; they become seconds of the machine's monotonic clock afterwards. That clock is the
same in all processes of a machine. A device's events are placed on it by one event whose time the
host knows to within what a synchronisation takes.
"""

import time
from dataclasses import dataclass

import torch

from ember.measure.clock import mark

COMPUTE = ("prefill", "decode", "sampling")


@dataclass(frozen=True)
class Event:
    """What a stage did for a unit of work, in ms since the run began.

    `receive` ends when the message was there; it begins when the stage had nothing else to do.
    `send` begins when the message was ready.
    """

    stage: int
    kind: str
    micro_batch: int
    step: int
    chunk: int
    start_ms: float
    end_ms: float

    @property
    def ms(self) -> float:
        return self.end_ms - self.start_ms


class HostTimeline:
    """Marks of a stage that computes on the CPU."""

    def __init__(self):
        self.marks: list[tuple] = []

    def mark(self) -> float:
        return time.perf_counter()

    def add(self, kind: str, unit, start: float, end: float) -> None:
        self.marks.append((kind, unit, start, end))

    def seconds(self) -> list[tuple]:
        """(kind, unit, start, end) of everything added."""
        return self.marks


class DeviceTimeline(HostTimeline):
    """Marks of a stage on a CUDA device: events in the stream that is current when they are taken.

    Make it when the device is idle.
    """

    def __init__(self, device: str):
        super().__init__()
        self._device = device
        closest = None
        for _ in range(5):  # the one that was waited for the shortest is known best
            before = time.perf_counter()
            event = self.mark()
            event.synchronize()
            after = time.perf_counter()
            if closest is None or after - before < closest[0]:
                closest = (after - before, event, (before + after) / 2)
        _, self._origin, self._origin_s = closest

    def mark(self) -> torch.cuda.Event:
        return mark(self._device)

    def seconds(self) -> list[tuple]:
        """As on the host; waits for the device.

        A receive is marked when it is posted, far ahead: it counts from when the stage ran dry.
        """
        torch.cuda.synchronize(self._device)

        def at(event) -> float:
            return self._origin_s + self._origin.elapsed_time(event) / 1e3

        marks = [(kind, unit, at(start), at(end)) for kind, unit, start, end in self.marks]
        busy = sorted((end for kind, _, _, end in marks if kind in COMPUTE), reverse=True)
        found = []
        for kind, unit, start, end in marks:
            if kind == "receive":
                idle_from = next((one for one in busy if one <= end), start)
                start = min(max(start, idle_from), end)
            found.append((kind, unit, start, end))
        return found


def busy_ms(events: list[Event], stage: int) -> float:
    """Time a stage computed."""
    return sum(event.ms for event in events if event.stage == stage and event.kind in COMPUTE)


def covered_ms(events: list[Event], kind: str) -> float:
    """Time during which at least one stage was at work of this kind."""
    spans = sorted((event.start_ms, event.end_ms) for event in events if event.kind == kind)
    total, reached = 0.0, float("-inf")
    for start, end in spans:
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def transfer_ms(events: list[Event]) -> float:
    """Time that stages waited for messages already on their way.

    Of every message the part after it was sent and while its receiver had nothing else to do: what
    overlap hides is not in it, nor is waiting for a neighbour that still computes.
    """
    sent = {_message(event): event for event in events if event.kind == "send"}
    total = 0.0
    for event in events:
        if event.kind == "receive":
            send = sent[(1 - event.stage, *_message(event)[1:])]
            total += max(0.0, event.end_ms - max(send.start_ms, event.start_ms))
    return total


def _message(event: Event) -> tuple:
    return event.stage, event.micro_batch, event.step, event.chunk
