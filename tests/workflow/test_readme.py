"""The README's commands, planned as they stand in a fresh checkout, and its links."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import declared
from tests.workflow.conftest import ROOT, Checkout

README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.M | re.S)
COMMANDS = [
    line.split("  #")[0].strip()
    for kind, text in BLOCKS
    for line in text.splitlines()
    if not kind and "bin/snakemake " in line and "--report" not in line
]
YAML = "".join(text for kind, text in BLOCKS if kind == "yaml")


def own(place: Checkout, text: str) -> str:
    """A text of the README with paths of this machine."""
    model, texts = place.path / "own-model", place.path / "own-texts"
    found = text.replace("/path/to/ember", str(place.path))
    return found.replace("/data/models/mine", str(model)).replace("/data/texts", str(texts))


@pytest.fixture
def place(fresh) -> Checkout:
    """A checkout with a configuration, a model and texts of one's own."""
    (fresh.path / ".venv").symlink_to(sys.prefix)
    declared(fresh.path / "own-model", max_positions=8192)
    (fresh.path / "own-texts").mkdir()
    (fresh.path / "own-texts" / "one.txt").write_text("A text.\n")
    (fresh.path / "mine.yaml").write_text(own(fresh, YAML))
    return fresh


@pytest.mark.slow
def test_every_command_plans_its_target(place):
    assert len(COMMANDS) >= 6
    for command in COMMANDS:
        done = subprocess.run(
            ["bash", "-c", own(place, command).replace("bin/snakemake", "bin/snakemake -n")],
            cwd=place.path,
            env=place.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}"
        assert "plot_fig" in done.stdout, command
        assert ("models/mine" in done.stdout) == ("mine" in command), command
        assert ("corpora/texts" in done.stdout) == ("mine" in command), command


def test_the_workflow_is_a_module_as_the_readme_says(place, tmp_path):
    [text] = [text for kind, text in BLOCKS if kind == "python"]
    outer = tmp_path / "outer"
    outer.mkdir()
    (outer / "Snakefile").write_text(own(place, text))
    (outer / "mine.yaml").write_text("scale: smoke\n")
    done = Checkout(outer).snakemake("-n", "results/p1_fig3.png", "--cores", "1")
    assert "results/smoke/" in done.stdout
    assert "ember_plot_fig3" in done.stdout


PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY", "config/README")),
    *ROOT.glob("docs/*.md"),
    *ROOT.glob("docs/notes/*.md"),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    links = re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", page.read_text("utf-8"))
    for link in links:
        assert (page.parent / link).exists(), f"{page} names {link}"


FILE = r"`((?:src|rules|workflow|tests|config|profiles)/[\w./-]+)`"
MODULE = r"`(ember(?:\.\w+)+)`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_modules_that_a_page_names_are_there(page: Path):
    text = page.read_text("utf-8")
    for path in re.findall(FILE, text):
        made_by_the_example = page.name == "CONTRIBUTING.md" and "dtypes" in path
        assert (ROOT / path).exists() or made_by_the_example, f"{page} names {path}"
    for name in re.findall(MODULE, text):
        parts = name.split(".")
        places = [ROOT.joinpath("src", *parts[:n]) for n in (len(parts), len(parts) - 1)]
        there = any(place.is_dir() or place.with_suffix(".py").exists() for place in places)
        assert there, f"{page} names {name}"
