"""The generated world: who knows what, and that splits are disjoint."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ember.c2c.world import (
    MASK,
    STRATA,
    BadWorld,
    World,
    ask,
    passages,
    pick,
    renamed,
    split_generator,
)
from ember.studies.c2c.items import item_row, read_items
from ember.studies.c2c.models.questions import world_items
from tests.c2c import small


def test_the_piloted_sizes():
    assert (World().vocab_size, World().passage_tokens) == (75, 79)


@given(seed=st.integers(0, 2**31), records=st.integers(1, 8), fillers=st.integers(0, 5))
def test_copies_show_what_their_reader_knows_and_nothing_else(seed, records, fillers):
    world = World(
        records=records, fillers=fillers, entities=4, entities_at_once=2, relations=4, values=5
    )
    made = passages(world, 6, np.random.default_rng(seed))
    assert made.full.shape == (6, world.passage_tokens)
    keys = made.records[..., 0] * 1000 + made.records[..., 1]
    assert all(len(set(row)) == records for row in keys.tolist())
    for row in range(6):
        found = {tuple(triple) for triple in made.records[row].tolist()}
        texts = {"sharer": made.known[row, :, 0], "receiver": made.known[row, :, 1]}
        texts["union"] = made.known[row].any(-1)
        for name, known in texts.items():
            text = getattr(made, name)[row].tolist()
            shown = {tuple(text[i : i + 3]) for i in range(len(text))} & found
            wanted = {tuple(r) for r, k in zip(made.records[row].tolist(), known, strict=True) if k}
            assert shown == wanted, name
        if made.no_context[row]:
            assert set(made.receiver[row, 1:].tolist()) == {MASK}


def test_strata_have_their_shares():
    world = World(no_context=0.2)
    made = passages(world, 2000, np.random.default_rng(0))
    strata = made.strata()
    inside = strata[~made.no_context]
    for number, share in enumerate(world.shares):
        assert abs((inside == number).mean() - share) < 0.01
    assert {STRATA[n] for n in np.unique(strata[made.no_context])} == {"neither", "no_context"}


def test_questions_name_a_record_once_and_only_those_allowed():
    made = passages(World(), 50, np.random.default_rng(0))
    allowed = made.known[..., 1] & ~made.no_context[:, None]
    picks = pick(allowed, 6, np.random.default_rng(1))
    asked = ask(made.records, picks)
    for row in range(50):
        if allowed[row].any():
            assert allowed[row][picks[row]].all()
        for question, place in zip(asked[row], picks[row], strict=True):
            assert [question[1], question[2], question[4]] == made.records[row, place].tolist()


def test_splits_are_disjoint_and_repeat():
    texts = {}
    for split in ("train", "tune", "development", "test"):
        for seed in (1, 2):
            made = passages(World(), 40, split_generator(seed, split))
            again = passages(World(), 40, split_generator(seed, split))
            assert np.array_equal(made.full, again.full)
            texts[split, seed] = {tuple(row) for row in made.full.tolist()}
    assert len(set.union(*texts.values())) == 8 * 40


def test_the_sharer_has_a_tokenizer_of_its_own():
    names = renamed(World(), 1)
    assert sorted(names.tolist()) == list(range(75))
    assert (names != np.arange(75)).mean() > 0.9


def test_items_ask_for_what_their_stratum_says_and_survive_their_table():
    world = World(no_context=0.3)
    items = world_items(world, 5, "test", 30, 4)
    back = {int(theirs): ours for ours, theirs in enumerate(renamed(world, 5))}
    for item in items:
        record = (*item.sections[-1][1:3], item.right)
        sharer = [back[token] for token in item.sharer]
        receiver = list(item.sections[0])
        seen = [
            any(tuple(text[i : i + 3]) == record for i in range(len(text)))
            for text in (sharer, receiver)
        ]
        expected = {
            "sharer_only": [True, False],
            "no_context": [True, False],
            "receiver_only": [False, True],
            "shared": [True, True],
            "neither": [False, False],
        }
        assert seen == expected[item.stratum]
        assert item.right in item.choices
    assert {item.stratum for item in items} == set(STRATA)
    rows = [item_row(item, "test") for item in items]
    assert read_items(rows, "test") == items
    assert read_items(rows, "test", 3) == items[:3]


@pytest.mark.parametrize(
    ("change", "cause"), [({"records": 9}, "need as many keys"), ({"shares": (1, 1, 0, 0)}, "1")]
)
def test_worlds_that_cannot_be(change, cause):
    with pytest.raises(BadWorld, match=cause):
        World(**{"entities_at_once": 2, "relations": 4, "records": 4} | change)


def test_values_are_equally_likely_so_that_chance_is_one_over_their_number():
    made = passages(small.WORLD, 3000, np.random.default_rng(0))
    counts = np.bincount(made.records[..., 2].ravel() - small.WORLD.first_value)
    assert np.all(abs(counts / counts.sum() - 1 / 6) < 0.02)
