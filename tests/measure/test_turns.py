"""Turns: everyone once a round, balanced or drawn."""

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from ember.measure.turns import rounds, turn

subjects = st.lists(st.integers(), unique=True, max_size=6)


@given(subjects, st.integers(0, 3), st.integers(0, 12), st.none() | st.integers())
def test_every_round_has_every_subject_once(names, warmup, repeats, seed):
    rng = None if seed is None else random.Random(seed)
    found = list(rounds(names, range(-warmup, repeats), rng))
    assert [number for number, _ in found] == list(range(-warmup, repeats))
    assert all(sorted(order) == sorted(names) for _, order in found)


@given(subjects.filter(len), st.integers(1, 4), st.integers(-3, 3))
def test_each_is_first_second_and_last_equally_often(names, times, start):
    numbers = range(start, start + times * len(names))
    places = Counter(place for _, order in rounds(names, numbers) for place in enumerate(order))
    assert set(places.values()) == {times}
    assert len(places) == len(names) ** 2


@given(subjects, st.integers())
def test_a_drawn_order_repeats_for_its_seed_and_cannot_be_spoilt(names, seed):
    orders = [list(order) for _, order in rounds(names, range(5), random.Random(seed))]
    again = rounds(names, range(5), random.Random(seed))
    for (_, order), before in zip(again, orders, strict=True):
        assert order == before
        order.clear()


def test_of_a_pair_each_goes_first_in_every_other_run():
    assert [turn("ab", number)[0] for number in range(-1, 4)] == ["b", "a", "b", "a", "b"]


def test_who_drops_out_is_left_out_from_then_on():
    running = {"a": 1, "b": 2, "c": 3}
    seen = []
    for number, order in rounds(running, range(3)):
        seen.append(order)
        if number == 0:
            del running["a"]
    assert seen == [["a", "b", "c"], ["c", "b"], ["b", "c"]]
    running.clear()
    assert list(rounds(running, range(1))) == [(0, [])]
