"""What failed runs leave is found and removed; everything else stays."""

import json
import os

import pytest

from ember.commands.main import main
from ember.operations import clean
from ember.operations.clean import StillRunning, leftovers, remove
from ember.operations.doctor.bookkeeping import encoded
from ember.records.schema import EVIDENCE, OUTCOME, Column, Schema
from ember.records.tables import write_table

RUNS = Schema("runs", "Runs", (Column("x", "int"), EVIDENCE, *OUTCOME))
ENDED = "10:00:00 ember.job: rule measure done in 1.0 s\n"
FAILED = "10:00:00 ember.job: rule measure starts\n10:00:01 ember.job: error: no model\nMake it.\n"


def write(root, path, text="x"):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def runs(root, path, status):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    row = {"x": 1, "evidence": "measured", "status": status, "reason": None}
    write_table(root / path, [row], RUNS, {})


def record(root, name, product):
    made = {"products": [{"path": product, "sha256": "0" * 64, "bytes": 1}]}
    write(root, f"results/tiny/benchmarks/{name}.job.json", json.dumps(made))


@pytest.fixture
def folder(tmp_path):
    """One of each: what failed, and what did not."""
    write(tmp_path, "logs/tiny/good.log", ENDED)
    write(tmp_path, "logs/tiny/bad.log", FAILED)
    write(tmp_path, "logs/tiny/again.log", FAILED)
    record(tmp_path, "bad", "results/tiny/gone.parquet")
    record(tmp_path, "again", "results/tiny/c2c/good.parquet")
    record(tmp_path, "good", "results/tiny/gone.parquet")
    runs(tmp_path, "results/tiny/c2c/good.parquet", "ok")
    runs(tmp_path, "results/tiny/c2c/skipped.parquet", "skipped")
    runs(tmp_path, "results/tiny/c2c/bad.parquet", "failed")
    runs(tmp_path, "results/product.parquet", "failed")
    write(tmp_path, "results/tiny/c2c/half.json")
    marker = tmp_path / ".snakemake/incomplete" / encoded("results/tiny/c2c/half.json")
    write(tmp_path, marker, "")
    write(tmp_path, "results/tiny/c2c/state.pt")
    return tmp_path


def test_only_what_failed_is_left_over(folder):
    found = leftovers(folder)
    assert [left.path for left in found] == [
        "logs/tiny/again.log",
        "logs/tiny/bad.log",
        "results/tiny/benchmarks/bad.job.json",
        "results/tiny/c2c/bad.parquet",
        "results/tiny/c2c/half.json",
    ]
    assert "error: no model" in found[1].why
    kept = {path for path in folder.rglob("*") if path.is_file()}
    remove(found, folder)
    gone = kept - {path for path in folder.rglob("*") if path.is_file()}
    assert {path.relative_to(folder).as_posix() for path in gone} == {one.path for one in found}
    assert not leftovers(folder)


def test_temporaries_of_dead_writers_alone(folder, monkeypatch):
    remove(leftovers(folder), folder)
    mine = write(folder, f"results/tiny/.a.00000000-{os.getpid()}-0.tmp.parquet")
    assert not leftovers(folder)  # of another machine
    monkeypatch.setattr(clean, "writer", lambda name: (7, False) if name == mine.name else None)
    assert [left.why for left in leftovers(folder)] == ["a killed job's temporary (process 7)"]


def test_nothing_is_removed_while_a_workflow_runs(folder, monkeypatch):
    monkeypatch.setattr(clean, "workflows", lambda root: [4711])
    with pytest.raises(StillRunning, match="process 4711"):
        leftovers(folder)


def test_the_command_lists_first(folder, capsys):
    assert main(["clean", "--directory", str(folder)]) == 0
    assert "5 leftovers: `ember clean --yes` removes them" in capsys.readouterr().out
    assert (folder / "logs/tiny/bad.log").exists()
    assert main(["clean", "--directory", str(folder), "--yes"]) == 0
    assert "5 leftovers: removed" in capsys.readouterr().out
    assert not (folder / "logs/tiny/bad.log").exists()
    assert main(["clean", "--directory", str(folder)]) == 0
    assert "nothing is left over" in capsys.readouterr().out
