"""The schedule: closed forms, and a solver that finds what trying every split finds."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.pipeline.plan import plan_units
from ember.records.errors import EmberError
from ember.studies.p1.pipeline.schedule import (
    PhaseCosts,
    best_split,
    makespan,
    read_costs,
)


def phase(layers, **parts):
    blank = dict.fromkeys(("embed", "head", "sample", "call", "hidden", "tokens"), 0.0)
    return PhaseCosts(tuple(layers), **blank | parts)


def both(layers, **parts):
    return {"prefill": phase(layers, **parts), "decode": phase(layers, **parts)}


def test_balanced_stages_with_free_messages_have_only_the_ramps_as_bubble():
    costs, micro_batches, tokens = both([1.0] * 4), 4, 5
    units = plan_units([8] * micro_batches, tokens)
    found = makespan(units, costs, 2, overlap=True)
    # The first unit runs alone in stage 0, the last alone in stage 1.
    assert found.total == pytest.approx(2.0 * (micro_batches * tokens + 1))
    assert found.bubble_share == pytest.approx(1 / (micro_batches * tokens + 1))


def test_without_overlap_all_work_and_all_messages_add_up_whatever_the_split():
    costs = both([1.0, 2.0, 3.0], embed=0.1, head=0.5, sample=0.2, call=0.3, hidden=0.4, tokens=0.2)
    units = plan_units([8] * 3, 4, overlap=False)
    for split in (1, 2):
        found = makespan(units, costs, split, overlap=False)
        # Nobody waits for the last message back.
        assert found.total == pytest.approx(12 * (6.0 + 0.1 + 0.7 + 0.6 + 0.6) - 0.2)


def test_one_micro_batch_cannot_overlap_while_decoding():
    costs = both([1.0] * 4, hidden=0.5, tokens=0.25)
    units = plan_units([8], 3)
    assert makespan(units, costs, 2, overlap=True).total == pytest.approx(3 * 4.5 + 2 * 0.25)


def test_a_heavy_head_moves_layers_to_the_first_stage():
    light, heavy = both([1.0] * 6), both([1.0] * 6, head=2.0)
    units = plan_units([8] * 4, 6)
    assert best_split(units, light) == 3
    assert best_split(units, heavy) == 4


TIMES = st.floats(0.01, 5.0)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(TIMES, min_size=2, max_size=6),
    st.fixed_dictionaries(
        dict.fromkeys(("embed", "head", "sample", "call", "hidden", "tokens"), TIMES)
    ),
    st.integers(1, 3),
    st.integers(1, 4),
)
def test_the_solver_finds_the_split_that_trying_all_finds(layers, parts, micro_batches, tokens):
    costs = both(layers, **parts)
    units = plan_units([8] * micro_batches, tokens)
    totals = {
        split: makespan(units, costs, split, overlap=True).total for split in range(1, len(layers))
    }
    found = best_split(units, costs)
    assert totals[found] == pytest.approx(min(totals.values()), rel=1e-6)


def test_one_layer_has_no_best_split():
    with pytest.raises(EmberError, match="Infeasible"):
        best_split(plan_units([8], 2), both([1.0]))


def test_costs_are_medians_by_phase():
    rows = [
        {"phase": "decode", "part": part, "repeat": repeat, "ms": ms}
        for part, times in {"layer 0": (1, 9, 2), "layer 1": (3, 3, 3), "head": (5, 7, 6)}.items()
        for repeat, ms in enumerate(times)
    ]
    costs = read_costs([*rows, {"phase": "prefill", "part": "layer 0", "repeat": 0, "ms": 8}])
    assert costs["decode"].layers == (2, 3)
    assert costs["decode"].head == 6
    assert costs["decode"].call == 0
    assert costs["prefill"].layers == (8,)
