"""Accounting of recorded events: what counts as computing, and what as transfer."""

import pytest

from ember.pipeline.timeline import Event, busy_ms, covered_ms, transfer_ms


def event(stage, kind, start, end, micro_batch=0, step=0):
    return Event(stage, kind, micro_batch, step, 0, start, end)


def test_busy_counts_computing_and_not_messages():
    events = [event(0, "prefill", 0, 2), event(0, "send", 2, 9), event(1, "decode", 3, 4)]
    assert busy_ms(events, 0) == 2
    assert busy_ms(events, 1) == 1


def test_covered_time_counts_what_overlaps_once():
    events = [event(0, "prefill", 0, 4), event(1, "prefill", 3, 6), event(0, "prefill", 8, 9)]
    assert covered_ms(events, "prefill") == 7
    assert covered_ms(events, "decode") == 0


@pytest.mark.parametrize(
    ("sent_at", "waits_from", "there_at", "expected"),
    [
        (2.0, 0.0, 2.5, 0.5),  # the receiver waits: waiting for the neighbour's work is not counted
        (2.0, 2.4, 2.5, 0.1),  # a part of the way is hidden
        (2.0, 7.0, 7.0, 0.0),  # it was there long before
    ],
)
def test_transfer_is_what_a_stage_waits_for_a_message_that_is_on_its_way(
    sent_at, waits_from, there_at, expected
):
    events = [
        event(0, "send", sent_at, sent_at + 0.01),
        event(1, "receive", waits_from, there_at),
        # Messages back are another direction, and other micro-batches other messages.
        event(1, "send", 9.0, 9.1),
        event(0, "receive", 9.0, 9.0),
        event(0, "send", 0.0, 0.1, micro_batch=1),
        event(1, "receive", -1.0, 0.1, micro_batch=1),
    ]
    expected_others = 0.1  # of micro-batch 1
    assert transfer_ms(events) == pytest.approx(expected + expected_others)
