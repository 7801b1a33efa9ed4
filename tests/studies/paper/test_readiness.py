"""Readiness says what there is, what it rests on, and never more."""

import pytest

from ember.records.schema import EVIDENCE, REASON, STATUS, WEIGHTS, Column, Schema
from ember.records.tables import write_table
from ember.studies.paper.readiness.summary import ITEMS, Item, Part, assess
from ember.studies.paper.readiness.tables import READINESS

ITEM = Item(
    "Fig 9",
    "P1-1",
    (Part("curve", "{scale}/curve.parquet", "fig9.png"), Part("the loop")),
)
CURVE = Schema("curve", "A curve", (Column("x", "int"), EVIDENCE, WEIGHTS))


def curve(results, scale="smoke"):
    (results / "smoke").mkdir(exist_ok=True)
    row = {"x": 1, "evidence": "measured", "weights": "random"}
    write_table(results / "smoke/curve.parquet", [row], CURVE, {"config": {"scale": scale}})


def status(results, items=(ITEM,)):
    [row] = assess(results, scale="smoke", items=items)
    return row


def test_nothing_made_is_missing(tmp_path):
    row = status(tmp_path)
    assert row["status"] == "missing"
    assert "results/smoke/curve.parquet is not made" in row["missing"]
    assert row["source"] is None


def test_a_table_without_its_figure_is_missing(tmp_path):
    curve(tmp_path)
    assert "results/fig9.png is not made" in status(tmp_path)["missing"]


def test_a_part_made_is_partial_and_says_what_it_rests_on(tmp_path):
    curve(tmp_path)
    (tmp_path / "fig9.png").touch()
    row = status(tmp_path)
    assert row["status"] == "partial"
    assert row["basis"] == "curve: measured, random weights"
    assert row["missing"] == "the loop"


def test_all_parts_made_are_ready(tmp_path):
    curve(tmp_path)
    (tmp_path / "fig9.png").touch()
    assert status(tmp_path, [Item("Fig 9", "P1-1", ITEM.parts[:1])])["status"] == "ready"


def test_a_table_of_another_scale_does_not_count(tmp_path):
    curve(tmp_path, scale="tiny")
    (tmp_path / "fig9.png").touch()
    row = status(tmp_path)
    assert row["status"] == "missing"
    assert "made at scale tiny, not smoke" in row["missing"]


def test_a_table_of_skipped_rows_is_not_ready(tmp_path):
    (tmp_path / "smoke").mkdir()
    schema = Schema("curve", "A curve", (Column("x", "int"), EVIDENCE, WEIGHTS, STATUS, REASON))
    row = {"x": 1, "evidence": "measured", "weights": "random"}
    skipped = row | {"status": "skipped", "reason": "one GPU"}
    provenance = {"config": {"scale": "smoke"}}
    write_table(tmp_path / "smoke/curve.parquet", [skipped], schema, provenance)
    (tmp_path / "fig9.png").touch()
    assert status(tmp_path)["missing"] == "curve: skipped (one GPU); the loop"
    rows = [skipped, row | {"x": 2, "status": "ok", "reason": None}]
    write_table(tmp_path / "smoke/curve.parquet", rows, schema, provenance)
    assert status(tmp_path)["missing"] == "the loop"


def test_what_is_drawn_from_the_code_needs_no_table(tmp_path):
    items = [Item("Talk: diagram", "P1-11.3", (Part("diagram", None, "house.png"),))]
    assert "results/house.png is not made" in status(tmp_path, items)["missing"]
    (tmp_path / "house.png").touch()
    row = status(tmp_path, items)
    assert row["status"] == "ready"
    assert row["basis"] == "diagram: drawn from the code"


@pytest.mark.parametrize("name", ["Fig 2", "Fig 3", "Fig 4", "Fig 5", "Table 1", "Table 2"])
def test_every_item_of_the_paper_has_a_row(tmp_path, name):
    rows = assess(tmp_path, scale="smoke")
    assert name in {row["item"] for row in rows}
    assert len(rows) == len(ITEMS)
    write_table(tmp_path / "readiness.parquet", rows, READINESS)
