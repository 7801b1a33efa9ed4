"""The order of messages, over a wire on which every call waits: nothing waits for what is later."""

import threading
from queue import Empty, Queue

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.pipeline.plan import plan_units
from ember.pipeline.run import run_first, run_last
from ember.pipeline.timeline import HostTimeline


class Stuck(Exception):
    pass


class WaitingWire:
    """Posting a receive returns when the message is there, sending when it has been received: what
    a host does that must wait for the device before it can go on."""

    ahead = False

    def __init__(self, rank: int, lines: list, seconds: float):
        self._rank, self._lines, self._seconds = rank, lines, seconds

    def send(self, message, unit, *, back=False):
        there, taken = self._lines[back]
        there.put((message, unit))
        self._get(taken)

    def post(self, room, unit, *, back=False):
        there, taken = self._lines[back]
        message, sent_for = self._get(there)
        assert sent_for == unit, "messages arrive in the order of the units"
        room.append(message)
        taken.put(None)

    def take(self, posted):
        pass

    def _get(self, queue):
        try:
            return queue.get(timeout=self._seconds)
        except Empty:
            raise Stuck from None


class Scribe:
    """A stage that notes what it is asked to do."""

    def __init__(self):
        self.tokens, self.inbox, self.done = [], [], []

    def prefill(self, given, *, ends):
        self.done.append("prefill")
        return "hidden"

    def decode(self):
        self.done.append("decode")
        return "hidden"

    def sample(self, logits):
        self.done.append("sample")


def run_both(units, count, overlap, *, ahead=False, seconds=5.0):
    """Both stages in threads; returns their stages, or raises what one of them raised."""
    lines = [(Queue(), Queue()) for _ in range(2)]
    stages, errors = [[Scribe() for _ in range(count)] for _ in range(2)], []

    def work(rank, function):
        wire = WaitingWire(rank, lines, seconds)
        wire.ahead = ahead
        inputs = [[] for _ in units]
        try:
            function(units, stages[rank], inputs, wire, HostTimeline(), overlap=overlap)
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=work, args=(rank, function))
        for rank, function in enumerate((run_first, run_last))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return stages


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=3),
    st.integers(1, 4),
    st.integers(1, 3),
    st.booleans(),
)
def test_a_run_goes_through_where_every_call_waits(lengths, new_tokens, chunks, overlap):
    units = plan_units(lengths, new_tokens, chunks=chunks, overlap=overlap)
    first, last = run_both(units, len(lengths), overlap)
    for length, early, late in zip(lengths, first, last, strict=True):
        work = ["prefill"] * min(chunks, length) + ["decode"] * (new_tokens - 1)
        assert early.done == work
        assert [what for what in late.done if what != "sample"] == work
        assert late.done.count("sample") == new_tokens


def test_receives_posted_ahead_would_be_waited_for_in_vain():
    units = plan_units([4, 4], 3)
    with pytest.raises(Stuck):
        run_both(units, 2, True, ahead=True, seconds=0.2)
