"""The loop, with a task of its own: resumption, the log, and ends before the last step."""

import itertools
import os
import signal

import pytest
import torch

from ember.optim.loop import Diverged, Interrupted, run


class Walk:
    """A random walk that depends on its state and on the steps' numbers alone."""

    device = torch.device("cpu")

    def __init__(self, fails_at=None, signals_at=None):
        self.place = torch.zeros(3)
        self.fails_at, self.signals_at = fails_at, signals_at
        self.steps: list[int] = []

    def step(self, number):
        if number == self.fails_at:
            raise Diverged("gone")
        if number == self.signals_at:
            os.kill(os.getpid(), signal.SIGTERM)
        generator = torch.Generator().manual_seed(number)
        self.place = 0.9 * self.place + torch.randn(3, generator=generator)
        self.steps.append(number)
        return {"loss": float(number), "size": float(self.place.norm())}

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


def without_times(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_rows_hold_means_and_validations():
    counter = itertools.count(1)
    rows = run(
        Walk(), 10, log_every=4, validate=lambda: {"score": float(next(counter))}, validate_every=3
    )
    assert [(row["step"], row["loss"], row.get("score")) for row in rows] == [
        (3, 1.0, 1.0),
        (4, 3.0, None),
        (6, 4.5, 2.0),
        (8, 6.5, None),
        (9, 8.0, 3.0),
        (10, 9.0, 4.0),
    ]
    assert rows[-1]["seconds"] > 0


@pytest.mark.parametrize("at", range(9))
def test_stopped_anywhere_it_ends_where_it_would_have_ended(tmp_path, at):
    whole, stopped, resumed = Walk(), Walk(signals_at=at), Walk()
    expected = run(whole, 10, log_every=4)
    state = tmp_path / "state.pt"
    with pytest.raises(Interrupted, match=f"SIGTERM after step {at + 1} of 10"):
        run(stopped, 10, log_every=4, state=state)
    rows = run(resumed, 10, log_every=4, state=state)
    assert torch.equal(resumed.place, whole.place)
    assert resumed.steps == list(range(at + 1, 10))
    assert without_times(rows) == without_times(expected)


def test_a_condition_ends_it_early_and_a_finished_run_does_no_more(tmp_path):
    def enough(row):
        return row["loss"] > 4

    state = tmp_path / "state.pt"
    walk = Walk()
    rows = run(walk, 100, log_every=2, stop=enough, state=state)
    assert [row["step"] for row in rows] == [2, 4, 6]
    again = Walk()
    assert run(again, 100, log_every=2, stop=enough, state=state) == rows
    assert again.steps == []
    assert torch.equal(again.place, walk.place)


def test_divergence_is_passed_on_and_its_state_dropped(tmp_path):
    state = tmp_path / "state.pt"
    with pytest.raises(Diverged, match="gone"):
        run(Walk(fails_at=5), 10, log_every=4, state=state, checkpoint_seconds=0.0)
    assert not state.exists()


def test_a_state_of_another_key_is_not_used(tmp_path):
    state = tmp_path / "state.pt"
    run(Walk(), 4, log_every=4, state=state, key="one")
    walk = Walk()
    run(walk, 4, log_every=4, state=state, key="other")
    assert walk.steps == [0, 1, 2, 3]
