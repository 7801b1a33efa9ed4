"""The worked examples of CONTRIBUTING.md, typed as they stand into a copy of the checkout."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ember.records.tables import read_rows
from tests.workflow.conftest import ROOT, Checkout

pytestmark = pytest.mark.slow

BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.M | re.S)
Block = tuple[str, str, str]
"""Language, file (none: typed into a shell), text."""


def blocks(heading: str) -> list[Block]:
    """The code blocks of a section."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    [section] = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    return BLOCK.findall(section)


def change(path: Path, diff: str) -> None:
    """Applies a diff without line numbers: what it shows of the file stands there once."""
    lines = diff.splitlines(keepends=True)
    assert {line[0] for line in lines} <= {" ", "+", "-", "\n"}, diff
    before = "".join(line[1:] for line in lines if line[0] != "+")
    after = "".join(line[1:] for line in lines if line[0] != "-")
    # The last line may be the beginning of one.
    before, after = before.removesuffix("\n"), after.removesuffix("\n")
    text = path.read_text("utf-8")
    assert text.count(before) == 1, f"{path} has this {text.count(before)} times:\n{before}"
    path.write_text(text.replace(before, after), "utf-8")


def follow(place: Checkout, heading: str) -> str:
    """Does what a section says; gives the output of what it types."""
    venv = place.path / ".venv"
    if not venv.exists():
        venv.symlink_to(sys.prefix)
    said = ""
    for language, name, text in blocks(heading):
        path = place.path / name
        if language == "sh":
            said += typed(place, text)
        elif language == "diff":
            change(path, text)
        elif path.exists():
            path.write_text(path.read_text("utf-8") + "\n\n" + text, "utf-8")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
    return said


def typed(place: Checkout, text: str) -> str:
    done = subprocess.run(
        ["bash", "-ec", text],
        cwd=place.path,
        env=place.environment({"PYTHONPATH": str(place.path / "src")}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def test_a_cache_policy(fresh):
    said = follow(fresh, "A cache policy")
    assert re.search(r"\d+ passed", said)
    assert "simulate_policies" in said
    wrong = fresh.snakemake(
        *("-n", "results/p1_policies.csv", "--profile", "local", "--config", "scale=smoke"),
        "p1={policies: [{name: refresh_after, updates: 0}]}",
        check=False,
    )
    assert wrong.returncode
    assert "updates is 0; set it to 1 or more" in wrong.stdout


def test_an_eviction_method(fresh):
    said = follow(fresh, "An eviction method")
    assert re.search(r"\d+ passed", said)
    assert "measure_eviction" in said
    wrong = fresh.snakemake(
        *("-n", "results/streaming_quality.csv", "--profile", "local", "--config", "scale=smoke"),
        "streaming={points: [{name: heavy_hiters}]}",
        check=False,
    )
    assert wrong.returncode
    assert "Did you mean 'heavy_hitters'" in wrong.stdout


def test_an_architecture(fresh):
    said = follow(fresh, "An architecture")
    assert re.search(r"\d+ passed", said)
    [row] = read_rows(fresh.path / "results/p1_architectures.parquet")
    assert (row["architecture"], row["model_type"]) == ("gemma-2b", "gemma")
    assert row["agrees"]
    assert row["tokens_equal"] == row["generated_tokens"] > 0


def test_a_study(finished, tmp_path):
    place = Checkout(tmp_path / "ember")
    shutil.copytree(finished.path, place.path, symlinks=True)
    said = follow(place, "A study")
    dry_run = said.split("This was a dry-run")[0]
    for rule in ("compare_dtypes", "summarise_dtypes", "plot_dtypes"):
        assert rule in dry_run
    assert "time_rollouts" not in said, "a new study reruns nothing"
    rows = read_rows(place.path / "results/p1_dtypes.parquet")
    assert [row["dtype"] for row in rows] == ["bfloat16", "float16"]
    assert all(row["logit_diff_max"] > 0 for row in rows)
    assert (place.path / "results/p1_dtypes.png").read_bytes().startswith(b"\x89PNG")
    assert "scale smoke" in (place.path / "results/p1_dtypes.caption.md").read_text()
    planned = place.snakemake("-n", "p1", "--profile", "local", "--config", "scale=smoke").stdout
    assert "compare_dtypes" not in planned, "it is made"


def test_a_study_touches_as_many_files_as_is_said():
    named = {name for _, name, _ in blocks("A study")} - {""}
    assert len(named | {"workflow/schemas/config.schema.json"}) == 8
