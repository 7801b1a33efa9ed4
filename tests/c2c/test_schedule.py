"""Layer schedules and the best of them under a byte budget."""

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ember.c2c import schedule
from ember.c2c.schedule import BadSchedule


def test_overrides_by_target_layer():
    told = {"default": "int8", "overrides": [{"layers": [2, 3], "scheme": "fp16"}]}
    assert schedule.by_target(told, 4) == ["int8", "int8", "fp16", "fp16"]
    assert schedule.by_target(told, 4) == schedule.last(2, 4)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"default": "int8", "overrides": [{"layers": [4], "scheme": "fp16"}]}, "none of 0 to 3"),
        ({"default": "int8", "overrides": [{"layers": [1, 1], "scheme": "fp16"}]}, "stands twice"),
        ({"default": "int7"}, "Did you mean"),
    ],
)
def test_schedules_that_are_none(told, said):
    with pytest.raises(BadSchedule, match=said):
        schedule.by_target(told, 4)


def test_a_shared_layer_is_sent_once_in_the_widest_scheme():
    gates = [(True, False), (False, False), (True, True), (False, True)]
    readers = schedule.readers((0, 0, 0, 2), gates)
    assert readers == {0: [0, 2], 2: [3]}
    assert schedule.by_sharer(["int4", "fp16", "int8", "int2"], readers) == {0: "int8", 2: "int2"}


SCHEMES = ("int2", "int4", "int8")
LOSS = st.integers(0, 1000).map(lambda n: n / 1000)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(LOSS, LOSS, LOSS), min_size=1, max_size=4), st.floats(0.0, 1.0))
@example([(0.001, 0.0, 0.0), (0.002, 0.0, 0.0)], 0.25)  # lost by the solver's preprocessing
def test_optimum_is_the_best_of_all(table, share):
    losses = {n: dict(zip(SCHEMES, row, strict=True)) for n, row in enumerate(table)}
    sizes = {n: {"int2": 2.0, "int4": 4.0, "int8": 8.0} for n in losses}
    budget = len(losses) * (2 + 6 * share)

    def total(of, chosen):
        return sum(of[layer][scheme] for layer, scheme in chosen.items())

    found = schedule.optimum(losses, sizes, budget)
    assert total(sizes, found) <= budget + 1e-6
    every = (dict(enumerate(one)) for one in itertools.product(SCHEMES, repeat=len(losses)))
    within = budget + 1e-6  # as the solver takes it
    best = min(total(losses, one) for one in every if total(sizes, one) <= within)
    assert total(losses, found) == pytest.approx(best, abs=1e-6)


def test_a_budget_that_nothing_fits():
    with pytest.raises(BadSchedule, match="the smallest takes 4"):
        schedule.optimum({0: {"int2": 0.0}, 1: {"int2": 0.0}}, {0: {"int2": 2}, 1: {"int2": 2}}, 3)


def test_controls_deal_the_same_schemes():
    chosen = {0: "int2", 3: "int4", 5: "fp16", 6: "int8"}
    assert schedule.backwards(chosen) == {0: "int8", 3: "fp16", 5: "int4", 6: "int2"}
    shuffled = [schedule.shuffled(chosen, seed) for seed in range(8)]
    assert all(sorted(one.values()) == sorted(chosen.values()) for one in shuffled)
    assert len({tuple(one.items()) for one in shuffled}) > 1
    assert shuffled[0] == schedule.shuffled(chosen, 0)
