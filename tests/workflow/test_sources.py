"""Own models and texts: their content is what rules depend on, not their times."""

import os
import time

import pytest

from ember.model.checkpoint import save_decoder
from tests.tiny import wild
from tests.workflow.conftest import SMOKE, checkout

pytestmark = pytest.mark.slow

MODEL, CORPUS = "results/smoke/models/mine", "results/smoke/corpora/mine.parquet"
TARGETS = (MODEL, CORPUS, "results/smoke/corpora/short.parquet")
MINE = """
models: {mine: {source: local, path: weights}}
corpora: {mine: {source: files, paths: [texts/*.txt, more]}}
"""
FETCH, BUILD = {"fetch_model": 1}, {"build_corpus": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A checkout that has taken a model and a corpus from files of its user, some of them links."""
    run = checkout(tmp_path_factory.mktemp("own") / "ember")
    stored = run.path / "stored"
    save_decoder(wild(vocab_size=20_000), stored, weights="trained")
    for name in ("texts", "more", "weights"):
        (run.path / name).mkdir()
    for name in ("texts/a.txt", "texts/b.txt", "more/c.md", "stored/d"):
        (run.path / name).write_text(f"What {name} says.\n")
    (run.path / "texts/d.txt").symlink_to(stored / "d")
    for name in ("config.json", "ember.json", "model.safetensors"):
        (run.path / "weights" / name).symlink_to(stored / name)
    (run.path / "mine.yaml").write_text(MINE)
    time.sleep(2.1)  # a file that has just changed is not remembered
    assert planned(run) == {"fetch_model": 1, "build_corpus": 2}
    run.snakemake(*TARGETS, "--configfile", "mine.yaml", *SMOKE)
    return run


def planned(run) -> dict[str, int]:
    return run.planned(*TARGETS, "--configfile", "mine.yaml")


def flip(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("weights/model.safetensors", FETCH),  # through a link
        ("stored/ember.json", FETCH),
        ("texts/a.txt", BUILD),
        ("texts/d.txt", BUILD),
        ("more/c.md", BUILD),
    ],
)
def test_a_changed_file_reruns_its_rule_and_a_restored_one_nothing(run, name, expected):
    file = run.path / name
    before = file.read_bytes()
    file.write_bytes(before + b" " if file.suffix == ".json" else flip(before))
    assert planned(run) == expected
    file.write_bytes(before)
    assert planned(run) == {}


def test_touched_files_and_those_that_no_rule_takes_rerun_nothing(run):
    for folder in ("stored", "texts", "more", "weights"):
        for file in (run.path / folder).iterdir():
            file.touch()
    for name in ("more/image.png", "weights/provenance.json"):
        (run.path / name).write_text("{}")
    assert planned(run) == {}


def test_a_file_that_comes_to_a_glob_or_goes_reruns_the_corpus(run):
    new, old = run.path / "texts" / "new.txt", run.path / "texts" / "b.txt"
    new.write_text("New.\n")
    assert planned(run) == BUILD
    new.unlink()
    old.rename(run.path / "b.txt")
    assert planned(run) == BUILD
    (run.path / "b.txt").rename(old)
    assert planned(run) == {}


def test_a_large_file_is_read_once(run):
    """What an earlier dry run noted of the weights is believed, as long as they look the same."""
    weights = (run.path / "weights/model.safetensors").resolve()
    assert weights.stat().st_size > 2**20
    os.utime(weights, (1e9, 1e9))
    time.sleep(2.1)
    assert planned(run) == {}
    changed = []
    for note in (run.path / ".snakemake/ember-digests").iterdir():
        *known, _ = note.read_text().split()
        if int(known[1]) == weights.stat().st_size:
            note.write_text(" ".join([*known, "0" * 64]))
            changed.append(note)
    assert len(changed) == 1
    assert planned(run) == FETCH
    changed[0].unlink()
    assert planned(run) == {}


def test_a_text_that_cannot_be_found_is_said_while_planning(run):
    done = run.snakemake(
        *("-n", CORPUS, *SMOKE, "corpora={mine: {source: files, paths: [stored/*.json.d]}}"),
        check=False,
    )
    assert done.returncode
    assert "nothing matches stored/*.json.d" in done.stdout
    assert "Traceback" not in done.stdout
