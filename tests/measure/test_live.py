"""Bytes of the tensors alive at once."""

import torch

from ember.measure.live import live_tensors


def test_the_peak_is_what_was_alive_at_once():
    with live_tensors() as live:
        first = torch.zeros(100)
        second = first + 1
        del first
        third = second * 2
        del second
    assert live.peak_bytes == 2 * 400
    assert live.bytes == 400
    assert third.sum() == 200


def test_views_share_and_what_was_there_before_is_not_counted():
    before = torch.ones(1000)
    with live_tensors([before]) as live:
        view = before.view(10, 100)[2:]
        made = view.t() + 0.0
    assert live.peak_bytes == made.nbytes


def test_what_is_freed_and_made_again_does_not_add_up():
    with live_tensors() as live:
        for _ in range(50):
            x = torch.empty(1000)
            del x
    assert live.peak_bytes == 4000
    assert live.bytes == 0
