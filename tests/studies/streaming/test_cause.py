"""Verdicts on what a prune's loss comes from, on numbers made up for it."""

import numpy as np
import pytest

from ember.studies.streaming.cause.summary import summarise_cause, summarise_parts
from ember.studies.streaming.cause.tables import CAUSE_PARTS, CAUSE_RUNS
from ember.studies.streaming.sinks.tables import STREAMING_GATE
from tests.rows import example

SETTINGS = {"seed": 1, "resamples": 200}


def gate(passes=True):
    reason = None if passes else "the gap is not above zero"
    return [example(STREAMING_GATE, corpus="long", passes=passes, reason=reason)]


def runs(**saved):
    """Losses of 8 streams, each repair's so many nats below that without one, with some noise."""
    noise = np.random.default_rng(2)
    levels = noise.normal(3, 1, 8)
    return [
        example(
            CAUSE_RUNS,
            repair=repair,
            stream=stream,
            nll=[level - by + noise.normal(0, 0.005 * (by != 0)), level - by],
            prunes=3,
        )
        for repair, by in saved.items()
        for stream, level in enumerate(levels)
    ]


def test_the_part_that_holds_the_loss_is_found():
    table = runs(none=0, mass=-0.05, norm=0.0, direction=0.08, fold=0.02, all=0.1)
    rows = {row["repair"]: row for row in summarise_cause(table, gate(), **SETTINGS)}
    assert rows["direction"]["removed"] == pytest.approx(0.8, abs=0.03)
    verdicts = {repair: row["verdict"] for repair, row in rows.items()}
    assert verdicts == {
        "none": "lazy pruning",
        "mass": "worse",
        "norm": "no difference",
        "direction": "most of the loss",
        "fold": "some of the loss",
        "all": "what a prune costs",
    }
    assert rows["all"]["prunes"] == 24
    assert rows["all"]["removed_low"] == rows["all"]["removed_high"] == 1


def test_where_prunes_cost_nothing_there_is_no_share():
    rows = summarise_cause(runs(none=0, direction=0.01, all=-0.01), gate(), **SETTINGS)
    assert {row["removed"] for row in rows} == {None}
    assert all(row["verdict"].startswith("nothing to remove") for row in rows)


def test_without_sinks_it_is_skipped():
    rows = summarise_cause(runs(none=0, all=0.1), gate(False), **SETTINGS)
    assert {row["status"] for row in rows} == {"skipped"}
    assert {row["verdict"] for row in rows} == {
        "none: no attention sinks: the gap is not above zero"
    }


def test_parts_by_layer():
    parts = [
        example(CAUSE_PARTS, layer=layer, stream=stream, mass=0.1 * (layer + 1), cosine=0.9)
        for layer in range(2)
        for stream in range(4)
    ]
    first, second = summarise_parts(parts, **SETTINGS)
    assert first["mass"] == first["mass_low"] == pytest.approx(0.1)
    assert second["mass"] == pytest.approx(0.2)
    assert first["streams"] == 4
