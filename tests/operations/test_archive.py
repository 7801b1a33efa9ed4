"""An archive holds the products, the tables they rest on and their trace, or is refused."""

import json
from datetime import date

import pytest

from ember.operations.archive import NothingToArchive, archive
from ember.records.provenance import collect
from ember.records.schema import EVIDENCE, Column, Schema
from ember.records.tables import write_table

DAY = date(2026, 1, 2)
TABLE = Schema("table", "A table", (Column("x", "int"), EVIDENCE))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A product that rests on one intermediate table."""
    monkeypatch.chdir(tmp_path)

    def made(rule, path, inputs, x):
        about = {"params": {}, "config": {}, "seeds": {}, "hardware": {}, "code": "c"}
        when = {"threads": 1, "started": "2026-01-01T00:00:00+00:00", "seconds": 1.0}
        provenance = collect(rule=rule, inputs=inputs, outputs=[path], **about, **when)
        write_table(tmp_path / path, [{"x": x, "evidence": "measured"}], TABLE, provenance)

    (tmp_path / "results/smoke").mkdir(parents=True)
    made("measure", "results/smoke/sweep.parquet", [], 1)
    made("summarise", "results/p1_sum.parquet", ["results/smoke/sweep.parquet"], 2)
    return made


def test_an_archive_holds_products_tables_and_trace(project, tmp_path):
    target = archive("p1_sum", "results", "reports", day=DAY)
    assert target.name == "p1_sum_2026-01-02"
    files = json.loads((target / "MANIFEST.json").read_text())
    assert set(files) == {"p1_sum.parquet", "smoke/sweep.parquet"}
    assert "rule measure" in (target / "TRACE.txt").read_text()
    with pytest.raises(NothingToArchive, match="exists"):
        archive("p1_sum", "results", "reports", day=DAY)


def test_a_product_whose_source_changed_is_not_archived(project, tmp_path):
    project("measure", "results/smoke/sweep.parquet", [], 3)
    with pytest.raises(NothingToArchive, match=r"changed since .*sweep\.parquet"):
        archive("p1_sum", "results", "reports", day=DAY)
    assert not (tmp_path / "reports").exists()


def test_an_unknown_experiment_is_refused(project):
    with pytest.raises(NothingToArchive, match="Make it first"):
        archive("p9", "results", "reports", day=DAY)
