"""Phases are told apart and add up."""

import math
import time

import pytest

from ember.measure import clock as module
from ember.measure.clock import BadTiming, PhaseClock, between_ms, mark, repeat


class Watch:
    """A clock that moves only when told to."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds


@pytest.fixture
def watch(monkeypatch):
    watch = Watch()
    monkeypatch.setattr(module, "time", watch)
    return watch


def test_phases_accumulate_in_the_order_they_first_began(watch):
    clock = PhaseClock("cpu")
    with clock.phase("prefill"):
        watch.wait(0.5)
    for _ in range(3):
        with clock.phase("decode"):
            watch.wait(0.25)
        watch.wait(10)  # between phases: counts to none
        with clock.phase("sampling"):
            watch.wait(0.125)
    assert clock.times_ms() == {"prefill": 500, "decode": 750, "sampling": 375}
    assert list(clock.times_ms()) == ["prefill", "decode", "sampling"]
    assert clock.calls() == {"prefill": 1, "decode": 3, "sampling": 3}
    clock.reset()
    assert clock.times_ms() == {}


def test_a_phase_that_fails_still_counts_and_closes(watch):
    clock = PhaseClock()

    def fail():
        with clock.phase("prefill"):
            watch.wait(1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with clock.phase("decode"):
        watch.wait(1)
    assert clock.times_ms() == {"prefill": 1000, "decode": 1000}


def test_nested_phases_would_count_twice():
    clock = PhaseClock()
    with clock.phase("prefill"):
        with pytest.raises(BadTiming, match="'transfer' begins inside phase 'prefill'"):
            clock.phase("transfer").__enter__()
        with pytest.raises(BadTiming, match="reset inside"):
            clock.reset()


def test_real_time_is_measured():
    clock = PhaseClock()
    began = time.perf_counter()
    with clock.phase("work"):
        math.fsum(range(20_000))
    wall = (time.perf_counter() - began) * 1e3
    assert 0 < clock.times_ms()["work"] <= wall


def test_repeat_records_after_the_warm_up(watch):
    waits = iter([9.0, 9.0, 0.001, 0.002, 0.003])
    samples = repeat(lambda: watch.wait(next(waits)), warmup=2, repeats=3)
    assert samples == pytest.approx([1, 2, 3])


@pytest.mark.parametrize("counts", [{"warmup": 0, "repeats": 0}, {"warmup": -1, "repeats": 1}])
def test_repeat_refuses_to_measure_nothing(counts):
    with pytest.raises(BadTiming, match="at least 1"):
        repeat(lambda: None, **counts)


def test_cuda_waits_once_and_reads_event_pairs(monkeypatch, watch):
    """The CUDA path against a stand-in for torch's events: no GPU is needed to check the order."""
    torch = pytest.importorskip("torch")
    calls = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            self.at = watch.now
            calls.append(f"record on {stream}")

        def elapsed_time(self, end):
            return (end.at - self.at) * 1e3

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append("wait"))
    clock = PhaseClock("cuda:1")
    for _ in range(2):
        with clock.phase("decode"):
            watch.wait(0.5)
    assert calls == ["record on stream of cuda:1"] * 4
    assert clock.times_ms() == {"decode": 1000}
    assert clock.times_ms() == {"decode": 1000}
    assert calls.count("wait") == 1


def test_marks_give_the_time_from_each_to_the_next():
    marks = [mark("cpu")]
    time.sleep(0.01)
    marks += [mark("cpu"), mark("cpu")]
    first, second = between_ms(marks)
    assert 10 <= first < 1000
    assert 0 <= second < first
