"""The arithmetic of C-M0, and what counts as a message."""

import pytest

from ember.c2c.world import World, renamed
from ember.studies.c2c.m0.measure import forwarded_items, in_choices, sharers_items, told_items
from ember.studies.c2c.m0.summary import summarise_baselines, summarise_speed
from ember.studies.c2c.models.questions import world_items

ABOUT = {"device": "cpu", "dtype": "float32", "model": "pair"}
ABOUT |= {"weights": "trained", "evidence": "measured"}


def answers(right: dict[str, list[list[bool]]], seed: int = 1) -> list[dict]:
    """Rows of C2C_ANSWERS: by method, text and question whether it was answered right."""
    return [
        {
            "seed": seed,
            "method": method,
            "item": 10 * text + number,
            "group": text,
            "stratum": "sharer_only" if number == 0 else "shared",
            "answer": 1,
            "right": 1 if correct else 2,
            "correct": correct,
            "confidence": 0.5,
            "bytes": 100 if method == "c2c" else 0,
            **ABOUT,
        }
        for method, texts in right.items()
        for text, questions in enumerate(texts)
        for number, correct in enumerate(questions)
    ]


def summarised(*tables) -> dict:
    rows = summarise_baselines(tables, choices=4, recipe="none", resamples=200, seed=0)
    return {(row["method"], row["stratum"]): row for row in rows}


def test_accuracies_gains_and_tests_by_stratum():
    found = summarised(
        answers(
            {"receiver": [[False, True]] * 20, "c2c": [[True, True]] * 18 + [[False, True]] * 2}
        )
    )
    c2c, alone = found["c2c", "sharer_only"], found["receiver", "sharer_only"]
    assert (c2c["accuracy"], alone["accuracy"]) == (0.9, 0.0)
    assert c2c["low"] < 0.9 < c2c["high"]
    assert c2c["gain"] == pytest.approx(0.9)
    assert c2c["p_holm"] == c2c["p"] < 0.01
    assert (c2c["bytes"], alone["bytes"], c2c["chance"]) == (100, 0, 0.25)
    assert alone["gain"] is None
    assert found["c2c", "all"]["accuracy"] == pytest.approx(0.95)
    assert found["c2c", "all"]["gain"] == pytest.approx(0.45)
    assert found["c2c", "shared"]["gain"] == 0
    assert ("c2c", "neither") not in found


def test_the_interval_is_over_texts_not_over_their_questions():
    """Questions about one text stand or fall together, so they count as one draw."""
    together = answers({"receiver": [[True] * 10] * 4 + [[False] * 10] * 4})
    mixed = answers({"receiver": [[True, False] * 5] * 8})
    wide, none = (summarised(rows)["receiver", "all"] for rows in (together, mixed))
    assert wide["accuracy"] == none["accuracy"] == 0.5
    assert wide["high"] - wide["low"] > 0.4
    assert none["high"] == none["low"]


def test_seeds_are_pooled_and_their_range_is_said():
    tables = [answers({"receiver": [[n == 1, True]] * 6}, seed=n) for n in (1, 2, 3)]
    row = summarised(*tables)["receiver", "sharer_only"]
    assert (row["seeds"], row["questions"], row["groups"]) == (3, 18, 18)
    assert (row["seed_min"], row["seed_max"]) == (0.0, 1.0)
    assert row["accuracy"] == pytest.approx(1 / 3)


def test_speed_is_against_items_one_by_one():
    def run(size: int, compiled: bool, ms: float, same=True, shared=False) -> dict:
        stages = ("sharer_prefill", "transmit", "receiver_prefill", "fuse", "answer", "total")
        said = {"batch_size": size, "compiled": compiled, "items_timed": 8, "same_answers": same}
        said["shared"] = shared
        return said | {f"{stage}_ms": ms for stage in stages} | {"repeat": 0} | ABOUT

    runs = [run(8, False, 2.0), run(1, False, 10.0), run(1, True, 8.0, same=False)]
    rows = summarise_speed([*runs, run(8, False, 1.0, shared=True)])
    found = {(row["batch_size"], row["compiled"], row["shared"]): row for row in rows}
    assert found[8, False, False]["speed_up"] == 5
    assert found[8, False, True]["speed_up"] == 10
    assert found[1, True, False]["speed_up"] == 1.25
    assert [row["same_answers"] for row in rows] == [True, True, False, True]


WORLD = World(entities=6, entities_at_once=3, relations=4, records=6, fillers=2, values=5)


def test_the_sharer_is_asked_in_its_own_tokens():
    items, names = world_items(WORLD, 3, "test", 5, 2), renamed(WORLD, 3)
    for item, theirs in zip(items, sharers_items(items), strict=True):
        assert theirs.sections == (item.sharer, tuple(names[list(item.sections[-1])]))
        assert theirs.right == names[item.right]
    rows = [{"answer": one.right, "right": one.right} for one in sharers_items(items)]
    assert [row["answer"] for row in in_choices(rows, items)] == [item.right for item in items]


def test_messages_hold_what_they_say_and_are_counted_as_text():
    items = world_items(WORLD, 3, "test", 5, 2)
    told, sizes = told_items(items, [{"answer": item.right} for item in items], WORLD)
    for item, one, size in zip(items, told, sizes, strict=True):
        assert one.sections[0][-3:] == (*item.sections[-1][1:3], item.right)
        assert size == len(" ".join(map(WORLD.text, one.sections[0][-3:])))
    back = {int(theirs): ours for ours, theirs in enumerate(renamed(WORLD, 3))}
    told, sizes = forwarded_items(items, WORLD, 3)
    assert len({len(one.sections[0]) for one in told}) == 1
    for item, one, size in zip(items, told, sizes, strict=True):
        text = [back[token] for token in item.sharer]
        known = [token for token in text if token >= WORLD.first_entity]
        assert list(one.sections[0])[-len(known) :] == known or not known
        assert size == len(" ".join(map(WORLD.text, known)))
