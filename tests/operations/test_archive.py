"""An archive holds the products, the tables they rest on and their trace, or is refused."""

import json
from datetime import date

import pytest

from ember.operations.archive import Changed, NothingToArchive, NotValid, archive, verify
from ember.records.provenance import collect
from ember.records.schema import EVIDENCE, OUTCOME, Column, Schema
from ember.records.tables import write_table

DAY = date(2026, 1, 2)
TABLE = Schema("table", "A table", (Column("x", "int"), EVIDENCE, *OUTCOME))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A product that rests on one intermediate table."""
    monkeypatch.chdir(tmp_path)

    def made(rule, path, inputs, x, status="ok", scale="tiny", dirty=False):
        about = {"params": {}, "config": {"scale": scale}, "seeds": {}, "hardware": {}, "code": "c"}
        when = {"threads": 1, "started": "2026-01-01T00:00:00+00:00", "seconds": 1.0}
        provenance = collect(rule=rule, inputs=inputs, outputs=[path], **about, **when)
        provenance |= {"source": {"commit": "c", "dirty": dirty}, "job": {"name": rule}}
        row = {"x": x, "evidence": "measured", "status": status, "reason": None}
        write_table(tmp_path / path, [row], TABLE, provenance)

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


def golden():
    return archive("p1_sum", "results", "reports", day=DAY, golden=True)


def test_a_golden_archive_holds_records_and_logs_and_is_verified_by_hash(project, tmp_path):
    for name in ("results/tiny/benchmarks/measure.job.json", "logs/tiny/measure.log"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(name)
    target = golden()
    assert target.relative_to("reports/golden").name == "p1_sum_2026-01-02"
    assert (target / "logs/measure.log").read_text() == "logs/tiny/measure.log"
    assert verify(target) == 4
    changed = target / "records/measure.job.json"
    changed.write_text("{}")
    (target / "smoke/more.parquet").write_text("not listed")
    with pytest.raises(Changed, match=r"records/measure\.job\.json, smoke/more\.parquet"):
        verify(target)
    changed.unlink()
    with pytest.raises(Changed, match="is not what was archived"):
        verify(target)


def test_a_manifest_leads_nowhere_else(tmp_path):
    (tmp_path / "secret").write_text("x")
    folder = tmp_path / "archive"
    folder.mkdir()
    for listed in ({"../secret": "0" * 64}, {}, {"x": 1}, []):
        (folder / "MANIFEST.json").write_text(json.dumps(listed))
        with pytest.raises(Changed):
            verify(folder)
    with pytest.raises(Changed, match="is missing"):
        verify(tmp_path)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"status": "failed"}, "has rows that failed"),
        ({"scale": "smoke"}, "of scale smoke"),
        ({"dirty": True}, "not committed"),
    ],
)
def test_no_golden_archive_of_runs_that_are_not_valid(project, tmp_path, how, says):
    project("measure", "results/smoke/sweep.parquet", [], 1, **how)
    project("summarise", "results/p1_sum.parquet", ["results/smoke/sweep.parquet"], 2)
    with pytest.raises(NotValid, match=says):
        golden()
    assert not (tmp_path / "reports").exists()
    assert archive("p1_sum", "results", "reports", day=DAY).is_dir()
