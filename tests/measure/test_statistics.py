"""Summaries match numpy; intervals, tests and corrections match closed forms."""

import math
from functools import partial
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.measure.statistics import (
    BadSamples,
    bootstrap,
    ends,
    ends_in_words,
    few,
    holm,
    interval,
    leading_equal,
    paired,
    summarise,
)

numbers = st.floats(-1e3, 1e3)
p_values = st.lists(st.floats(0, 1), max_size=12)


def rng(seed=0):
    return np.random.default_rng(seed)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.001, 1e6), min_size=2, max_size=30))
def test_summary_matches_numpy(samples):
    found = summarise(samples)
    assert found["n"] == len(samples)
    expected = {
        "median": np.median(samples),
        "mean": np.mean(samples),
        "std": np.std(samples, ddof=1),
        "cv": np.std(samples, ddof=1) / np.mean(samples),
        "p10": np.percentile(samples, 10) if len(samples) > 9 else None,
        "p50": np.percentile(samples, 50),
        "p90": np.percentile(samples, 90) if len(samples) > 9 else None,
        "min": min(samples),
        "max": max(samples),
    }
    for name, value in expected.items():
        close = value if value is None else pytest.approx(value, rel=1e-9, abs=1e-9)
        assert found[name] == close, name
    row = {f"ms_{name}": value for name, value in found.items()} | {"n": len(samples)}
    bars = ("p10", "p90") if len(samples) > 9 else ("min", "max")
    assert ends(row, "ms") == tuple(found[end] for end in bars)


def test_error_bars_are_the_range_of_few_runs_and_percentiles_of_many():
    assert ends_in_words([3, 3]) == "least to greatest of n = 3 runs"
    assert ends_in_words([20]) == "p10 to p90 of n = 20 runs"
    assert ends_in_words([1]) == "a single run"
    both = "least to greatest of n = 3 or 5 runs, p10 to p90 of n = 10 runs"
    assert ends_in_words([5, 3, 10, 1]) == both


def test_one_sample_has_no_spread():
    found = summarise([2.0])
    assert (found["median"], found["p10"], found["min"]) == (2.0, None, 2.0)
    assert (found["std"], found["cv"]) == (None, None)


def test_what_cannot_be_summarised():
    with pytest.raises(BadSamples, match="no samples"):
        summarise([])
    with pytest.raises(BadSamples, match="NaN or infinity"):
        summarise([1.0, math.nan])


@settings(max_examples=50, deadline=None)
@given(st.lists(numbers, min_size=1, max_size=12), st.integers(0, 99))
def test_resamples_hold_what_the_samples_hold_and_repeat_for_a_seed(samples, seed):
    draws = bootstrap(samples, rng(seed), 40)
    assert draws.shape == (41,)
    assert draws[0] == np.median(samples)
    assert (draws >= min(samples)).all()
    assert (draws <= max(samples)).all()
    assert (draws == bootstrap(samples, rng(seed), 40)).all()
    low, high = interval(draws)
    assert low <= draws[0] <= high


def test_a_bootstrap_of_means_spreads_as_the_standard_error():
    samples = rng().normal(size=400)
    draws = bootstrap(samples, rng(1), 4000, partial(np.mean, axis=1))
    error = samples.std() / math.sqrt(len(samples))
    assert draws[1:].std() == pytest.approx(error, rel=0.05)
    low, high = interval(draws)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.05)


def test_what_belongs_to_an_item_is_resampled_together():
    pairs = np.stack([np.arange(9.0), 2 * np.arange(9.0) + 1], axis=1)
    draws = bootstrap(pairs, rng(), 50)
    assert draws.shape == (51, 2)
    assert (draws[:, 1] == 2 * draws[:, 0] + 1).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 13), st.integers(0, 13), st.integers(0, 5))
def test_for_right_and_wrong_answers_the_paired_test_is_mcnemars(won, lost, ties):
    won, lost = min(won, 14 - min(lost, 7)), min(lost, 7)
    ours, theirs = [1] * won + [0] * lost + [1] * ties, [0] * won + [1] * lost + [1] * ties
    if not ours:
        return
    found = paired(ours, theirs, rng(), 100)
    n, k = won + lost, min(won, lost)
    binomial = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
    assert found["p"] == pytest.approx(min(1.0, 2 * binomial))
    assert found["n"] == len(ours)
    assert found["difference"] == pytest.approx((won - lost) / len(ours))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=8))
def test_few_pairs_are_tested_by_every_flip_in_either_direction(pairs):
    ours, theirs = map(list, zip(*pairs, strict=True))
    differences = [a - b for a, b in pairs]
    slack = 1e-9 * sum(map(abs, differences))
    sums = [
        abs(sum(sign * d for sign, d in zip(signs, differences, strict=True)))
        for signs in product((1, -1), repeat=len(pairs))
    ]
    expected = sum(s >= abs(sum(differences)) - slack for s in sums) / len(sums)
    one, other = paired(ours, theirs, rng(), 50), paired(theirs, ours, rng(), 50)
    assert one["p"] == other["p"] == pytest.approx(expected)
    assert one["low"] <= one["difference"] <= one["high"]
    assert (other["low"], other["high"]) == pytest.approx((-one["high"], -one["low"]), abs=1e-6)


def test_many_pairs_are_tested_by_a_sample_of_flips():
    noise = rng(3).normal(size=200)
    same = paired(noise, np.zeros(200), rng(), 2000)
    other = paired(noise + 1, np.zeros(200), rng(), 2000)
    # The sum of random flips is normal with the root of the sum of squares.
    z = abs(noise.sum()) / math.sqrt((noise**2).sum())
    assert same["p"] == pytest.approx(math.erfc(z / math.sqrt(2)), abs=0.04)
    assert other["p"] == 1 / 2001
    assert same["low"] < 0 < same["high"]
    assert other["low"] > 0


@pytest.mark.parametrize(("ours", "theirs"), [([], []), ([1.0], [1.0, 2.0])])
def test_what_is_no_pair_is_refused(ours, theirs):
    with pytest.raises(BadSamples, match="no pairs"):
        paired(ours, theirs, rng())
    with pytest.raises(BadSamples, match="no samples"):
        bootstrap([], rng(), 10)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(p_values)
def test_holm_lies_between_no_correction_and_bonferroni_and_keeps_the_order(values):
    found = holm(values)
    for p, adjusted in zip(values, found, strict=True):
        assert p <= adjusted <= 1
        assert adjusted <= max(p, min(1.0, len(values) * p))
    by_value = [a for _, a in sorted(zip(values, found, strict=True))]
    assert by_value == sorted(by_value)


@given(p_values, st.floats(0.001, 0.2))
def test_holm_rejects_what_its_steps_reject(values, alpha):
    rejected, ordered = set(), sorted(range(len(values)), key=lambda i: values[i])
    for rank, place in enumerate(ordered):
        if (len(values) - rank) * values[place] > alpha:
            break
        rejected.add(place)
    assert {i for i, p in enumerate(holm(values)) if p <= alpha} == rejected


def test_leading_equal_counts_up_to_the_first_difference():
    assert leading_equal([1, 2, 3, 4], [1, 2, 3, 4]) == 1.0
    assert leading_equal([1, 2, 3, 4], [1, 2, 9, 4]) == 0.5
    assert leading_equal([1, 2, 3, 4], [1, 2]) == 0.5
    assert leading_equal([1, 2], [1, 2, 3]) == 1.0
    assert leading_equal([5], [6]) == 0.0


def test_the_mean_of_a_few_has_an_interval_that_holds_it_as_often_as_it_says():
    rng = np.random.default_rng(0)
    for count in (3, 5, 12):
        drawn = rng.normal(2.0, 3.0, (4000, count))
        held = [low <= 2.0 <= high for _, low, high in map(few, drawn)]
        assert np.mean(held) == pytest.approx(0.95, abs=0.015)
    assert few([1.0, 1.0, 1.0]) == (1.0, 1.0, 1.0)
    assert few([4.0]) == (4.0, -math.inf, math.inf)
    with pytest.raises(BadSamples):
        few([])
