"""Splits, micro-batches and units: complete, ordered, and refused where they cannot run."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ember.pipeline.plan import (
    BadSplit,
    check_split,
    make_micro_batches,
    plan_units,
    splits_of,
)

FRACTIONS = [0.25, 1 / 3, 0.5, 2 / 3, 0.75]


def test_the_splits_of_36_layers_are_those_of_the_specification():
    assert splits_of(36, FRACTIONS) == [9, 12, 18, 24, 27]
    assert splits_of(4, FRACTIONS) == [1, 2, 3]
    assert splits_of(2, FRACTIONS) == [1]


@pytest.mark.parametrize("split", [0, 4, -1, 1.5])
def test_a_split_without_layers_for_both_is_refused(split):
    with pytest.raises(BadSplit, match="Choose 1 to 3"):
        check_split(split, 4)


def test_one_layer_cannot_be_split():
    with pytest.raises(BadSplit, match="one layer has no two stages"):
        splits_of(1, FRACTIONS)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=12), st.data())
def test_every_sequence_is_in_one_micro_batch_of_its_length(lengths, data):
    wanted = data.draw(st.integers(1, len(lengths)))
    groups = make_micro_batches(lengths, wanted)
    assert sorted(number for group in groups for number in group) == list(range(len(lengths)))
    assert all(len({lengths[number] for number in group}) == 1 for group in groups)
    if len(set(lengths)) == 1:
        assert len(groups) == wanted
        assert max(map(len, groups)) - min(map(len, groups)) <= 1


def test_more_micro_batches_than_sequences_are_refused():
    with pytest.raises(BadSplit, match="3 sequences cannot make 4"):
        make_micro_batches([5, 5, 5], 4)


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.integers(1, 6),
    st.integers(1, 5),
    st.booleans(),
)
def test_units_cover_prompts_and_steps_in_an_order_that_both_stages_can_run(
    lengths, new_tokens, chunks, overlap
):
    units = plan_units(lengths, new_tokens, chunks=chunks, overlap=overlap)
    for micro_batch, length in enumerate(lengths):
        own = [unit for unit in units if unit.micro_batch == micro_batch]
        # Neighbouring and complete: the last token that is sampled is never run.
        assert own[0].start == 0
        assert all(before.stop == after.start for before, after in itertools.pairwise(own))
        assert own[-1].stop == length + new_tokens - 1
        assert sum(unit.samples for unit in own) == new_tokens
        # What a decoding step runs was sampled, and has been sent back.
        for before, after in itertools.pairwise(own):
            assert not after.step or (before.samples and before.replies)
    assert all(unit.replies for unit in units) or overlap


def test_nothing_to_generate_is_refused():
    with pytest.raises(BadSplit, match="new_tokens is 0"):
        plan_units([4], 0)
