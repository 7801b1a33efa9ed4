"""Published figures can be made again from the raw tables beside them."""

import json
import shutil
from pathlib import Path

import pytest

from ember.commands.main import main
from ember.commands.rebuild import Folder
from ember.records.schema import EVIDENCE, Column, Schema
from ember.records.tables import read_rows, table_provenance, table_schema, write_table

MEASURED = Path(__file__).parents[2] / "docs/measured"
# Folders that say so: their README names the command.
KEPT = [f.parent for f in MEASURED.glob("*/README.md") if "ember rebuild" in f.read_text("utf-8")]
PIPELINE = MEASURED / "h200x2"


def rebuilt(folder, out) -> dict:
    return {one.product: one for one in Folder(folder, out).rebuild()}


@pytest.fixture
def copied(tmp_path):
    return Path(shutil.copytree(PIPELINE, tmp_path / "published"))


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_published_figures_are_those_of_their_raw_tables(folder, tmp_path):
    found = rebuilt(folder, tmp_path)
    figures = {name: one for name, one in found.items() if name.endswith(".png")}
    assert figures
    assert not {name: one.detail for name, one in figures.items() if one.status != "equal"}
    # What was not copied (all products, which the readiness table is made from) is said.
    assert {one.status for one in found.values()} <= {"equal", "incomplete"}


def test_raw_tables_lead_to_summary_and_figures(tmp_path):
    found = rebuilt(PIPELINE, tmp_path)
    assert {name: one.status for name, one in found.items()} == dict.fromkeys(
        ("p1_pipeline.parquet", "p1_gantt.png", "p1_pipeline_splits.png"), "equal"
    )
    made = table_provenance(tmp_path / "p1_pipeline.parquet")
    assert made["rule"] == "ember rebuild"
    assert made["params"]["step"] == "p1.pipeline.summary.summarise_pipeline"
    assert (tmp_path / "p1_gantt.pdf").exists()


def change(path, **values) -> None:
    rows = read_rows(path)
    about = table_provenance(path)
    write_table(path, [rows[0] | values, *rows[1:]], table_schema(path), about)


def test_a_value_that_the_raw_table_does_not_give_is_named(copied, tmp_path, capsys):
    change(copied / "p1_pipeline.parquet", total_ms_median=1.0)
    assert main(["rebuild", str(copied), "--out", str(tmp_path / "out")]) == 1
    assert "total_ms_median of " in capsys.readouterr().out


def test_a_caption_that_says_something_else_is_named(copied, tmp_path):
    caption = copied / "p1_gantt.caption.md"
    caption.write_text(caption.read_text("utf-8").replace("9.1 %", "8.1 %"), "utf-8")
    one = rebuilt(copied, tmp_path / "out")["p1_gantt.png"]
    assert one.status == "differs"
    assert "published 8.1" in one.detail


def test_tables_of_an_earlier_schema_are_historical_with_all_that_follows(copied, tmp_path):
    raw = copied / "gpu/p1/pipeline/runs.parquet"
    row = {"x": 1, "evidence": "measured"}
    write_table(raw, [row], Schema("pipeline_runs", "Old", (Column("x", "int"), EVIDENCE)))
    found = rebuilt(copied, tmp_path / "out")
    assert {one.status for one in found.values()} == {"historical"}
    assert "is not a table of schema 'pipeline_runs'" in found["p1_pipeline.parquet"].detail
    assert "p1_pipeline.parquet" in found["p1_gantt.png"].detail


def test_a_step_that_is_gone_is_historical(copied, tmp_path):
    path = copied / "p1_pipeline.parquet"
    about = table_provenance(path)
    about["params"]["step"] = "p1.pipeline.summary.no_such_step"
    write_table(path, read_rows(path), table_schema(path), json.loads(json.dumps(about)))
    one = rebuilt(copied, tmp_path / "out")["p1_pipeline.parquet"]
    assert one.status == "historical"
    assert "there is no step" in one.detail


def test_raw_tables_that_are_not_there_are_named(copied, tmp_path):
    (copied / "gpu/p1/pipeline/runs.parquet").unlink()
    one = rebuilt(copied, tmp_path / "out")["p1_pipeline.parquet"]
    assert one.status == "incomplete"
    assert "results/gpu/p1/pipeline/runs.parquet, not here" in one.detail


def test_every_published_folder_can_be_asked():
    for folder in MEASURED.iterdir():
        if folder.is_dir():
            assert (folder / "README.md").exists()


def test_a_folder_that_is_not_there(tmp_path, capsys):
    assert main(["rebuild", str(tmp_path / "gone")]) == 1
    assert "is no folder" in capsys.readouterr().err
