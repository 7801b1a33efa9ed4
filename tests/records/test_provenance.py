"""Provenance is complete, says what it does not know, and survives inside every kind of product."""

import json
import os
import shutil
import subprocess

import pytest

from ember.records import provenance as module
from ember.records.errors import BadProvenance
from ember.records.provenance import (
    carrier,
    describe,
    digest,
    figure_metadata,
    provenance_of,
    read_figure_provenance,
    read_sidecar,
    source_state,
    tree_sha256,
    write_sidecar,
)
from ember.records.tables import write_table


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_collect_records_everything_as_plain_data(tmp_path, made):
    (tmp_path / "in.txt").write_text("hello")
    found = made(
        "fit", ["in.txt", tmp_path / "in.txt"], [tmp_path / "results/out.parquet"], seconds=1.23456
    )
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["rule"] == "fit"
    assert found["outputs"] == ["results/out.parquet"]
    assert [(i["path"], i["kind"], i["bytes"]) for i in found["inputs"]][:1] == [
        ("in.txt", "file", 5)
    ]
    assert found["inputs"][0]["sha256"] == (
        "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    )
    assert found["seconds"] == 1.235
    assert found["config"] == {"scale": "smoke"}
    assert {"python", "numpy", "pyarrow"} <= set(found["versions"])
    assert found["source"]["commit"] or len(found["source"]["tree_sha256"]) == 64
    assert found["ember"]
    for key in ("params", "seeds", "code", "hardware", "threads", "started"):
        assert found[key]


def test_a_missing_input_is_an_error(made):
    with pytest.raises(BadProvenance, match=r"gone\.parquet does not exist"):
        made("fit", ["gone.parquet"], [])


def test_paths_outside_the_working_directory_stay_absolute(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    (tmp_path / "model").write_text("")
    monkeypatch.chdir(tmp_path / "work")
    assert describe("../model")["path"] == str(tmp_path / "model")


def test_a_directory_is_its_names_and_contents(tmp_path):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "sub/weights").write_text("www")
    first, size = digest(folder)
    assert size == 5
    (folder / ".snakemake_timestamp").touch()
    assert digest(folder)[0] == first
    shutil.copytree(folder, tmp_path / "copy")
    assert digest(tmp_path / "copy")[0] == first
    (folder / "sub/weights").rename(folder / "weights")
    assert digest(folder)[0] != first
    (folder / "weights").rename(folder / "sub/weights")
    assert digest(folder)[0] == first
    (folder / "sub/weights").write_text("wwx")
    assert digest(folder)[0] != first


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True
    )


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "source"
    for name in ("src/ember/a.py", "rules/a.smk", "docs/a.md", "Snakefile"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("one\n")
    return root


def test_commit_and_dirty_flag(source):
    git(source, "init", "-q")
    git(source, "add", ".")
    git(source, "commit", "-q", "-m", "first")
    clean = source_state(source)
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    assert "note" not in clean
    assert "tree_sha256" not in clean, "the commit names the tree"
    (source / "docs/a.md").write_text("two\n")
    source_state.cache_clear()
    assert source_state(source) == clean
    (source / "src/ember/new.py").write_text("two\n")
    assert source_state(source) == clean, "asked once a process"
    source_state.cache_clear()
    dirty = source_state(source)
    assert dirty["dirty"] is True
    assert dirty["commit"] == clean["commit"]
    assert dirty["tree_sha256"] == tree_sha256(source)


def test_without_git_a_content_hash_stands_in_and_says_so(source):
    found = source_state(source)
    assert (found["commit"], found["dirty"]) == (None, None)
    assert found["note"].startswith("no git: tree_sha256 hashes src, rules")
    assert found["tree_sha256"] == tree_sha256(source)


def test_the_repository_around_a_copied_tree_says_nothing(source, tmp_path):
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "other")
    assert source_state(source)["commit"] is None


def test_no_git_program(source, monkeypatch):
    git(source, "init", "-q")
    monkeypatch.setenv("PATH", "/nowhere")
    assert source_state(source)["commit"] is None


def test_the_tree_hash_leaves_out_what_python_builds(source):
    before = tree_sha256(source)
    (source / "src/ember/__pycache__").mkdir()
    (source / "src/ember/__pycache__/a.pyc").write_text("x")
    (source / "src/ember.egg-info").mkdir()
    (source / "src/ember.egg-info/PKG-INFO").write_text("x")
    assert tree_sha256(source) == before
    (source / "rules/a.smk").write_text("two\n")
    assert tree_sha256(source) != before


def test_sidecar(tmp_path, made):
    found = made("train", [], ["model"])
    assert read_sidecar(tmp_path) is None
    write_sidecar(tmp_path, found)
    assert read_sidecar(tmp_path) == found == provenance_of(tmp_path)
    (tmp_path / "provenance.json").write_text('{"rule": ')
    with pytest.raises(BadProvenance, match=r"provenance\.json cannot be read"):
        read_sidecar(tmp_path)


@pytest.fixture
def drawn(tmp_path, made):
    """A figure as PNG and PDF, with awkward characters in its provenance."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    found = made("plot", [], ["fig.png"], params={"text": "a (b) \\ c\nd é 漢 %%EOF"})
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([0, 1])
    for ending in ("png", "pdf"):
        figure.savefig(tmp_path / f"fig.{ending}", metadata=figure_metadata(found))
    return found


@pytest.mark.parametrize("name", ["fig.png", "fig.pdf"])
def test_figures(tmp_path, drawn, name):
    assert read_figure_provenance(tmp_path / name) == drawn == provenance_of(tmp_path / name)


@pytest.mark.parametrize("name", ["fig.png", "fig.pdf"])
def test_truncated_and_foreign_figures(tmp_path, drawn, name):
    path = tmp_path / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadProvenance, match="is truncated"):
        read_figure_provenance(path)
    path.write_text("not a figure")
    with pytest.raises(BadProvenance, match="is not a P"):
        read_figure_provenance(path)
    path.unlink()
    with pytest.raises(BadProvenance, match="cannot be read"):
        read_figure_provenance(path)


def test_figures_of_others_carry_none(tmp_path):
    from matplotlib.figure import Figure

    for ending in ("png", "pdf"):
        Figure(figsize=(1, 1)).savefig(tmp_path / f"f.{ending}", metadata={"Keywords": "a (b)"})
        assert read_figure_provenance(tmp_path / f"f.{ending}") is None


def test_text_renderings_refer_to_what_stands_beside_them(tmp_path, times, rows, drawn):
    write_table(tmp_path / "t.parquet", rows, times)
    for ending in (".csv", ".md", ".tex"):
        assert carrier(tmp_path / f"t{ending}") == tmp_path / "t.parquet"
    assert carrier(tmp_path / "fig.caption.md") == tmp_path / "fig.png"
    assert carrier(tmp_path / "alone.csv") == tmp_path / "alone.csv"
    assert carrier(tmp_path / "model/provenance.json") == tmp_path / "model"
    assert carrier(tmp_path / "t.parquet") == tmp_path / "t.parquet"


def test_hashes_are_not_remembered_past_a_change(tmp_path):
    path = tmp_path / "a"
    path.write_text("aa")
    first = digest(path)
    path.write_text("ab")
    os.utime(path, ns=(1, 1))
    assert digest(path) != first


def test_the_version_is_that_of_the_source(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "9.8.7"\n')
    assert module.ember_version(tmp_path) == "9.8.7"
    assert module.ember_version(module.source_root())


def test_digests_of_large_files_are_noted_for_other_jobs_and_never_outlive_a_change(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "_SETTLED_NS", 0)
    (tmp_path / ".snakemake").mkdir()
    weights = tmp_path / "weights"
    weights.write_bytes(b"a" * 2**20)
    first = digest(weights, remembered=True)
    [note] = (tmp_path / ".snakemake/ember-digests").iterdir()

    def another_process():
        module._hash_once.cache_clear()

    another_process()
    note.write_text(note.read_text().replace(first[0], "0" * 64))
    assert digest(weights, remembered=True)[0] == "0" * 64, "taken from the note"
    assert digest(weights) == first, "who checks a file reads it"
    times = weights.stat()
    weights.write_bytes(b"b" * 2**20)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    another_process()
    changed = digest(weights, remembered=True)
    assert changed[0] not in (first[0], "0" * 64), "same size and mtime, other content"
    for damaged in ("", "x", "1 2 3", note.read_text()[:-9]):
        note.write_text(damaged)
        another_process()
        assert digest(weights, remembered=True) == changed


def test_small_and_unsettled_files_are_not_noted(tmp_path):
    (tmp_path / ".snakemake").mkdir()
    (tmp_path / "small").write_bytes(b"a")
    (tmp_path / "fresh").write_bytes(b"a" * 2**20)
    for name in ("small", "fresh"):
        digest(tmp_path / name, remembered=True)
    assert not (tmp_path / ".snakemake/ember-digests").exists()


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "7", "null", "[" * 200_000, '{"rule": 7}', '{"config": []}', '{"inputs": {}}'),
        *(
            '{"inputs": [7]}',
            '{"inputs": [{"path": "x"}]}',
            '{"outputs": [1]}',
            '{"hardware": "x"}',
        ),
        '{"inputs": [{"path": "x", "sha256": "y", "bytes": "many"}]}',
    ],
)
def test_foreign_provenance_is_one_error_that_names_the_file(tmp_path, text):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/provenance.json").write_text(text)
    with pytest.raises(BadProvenance, match=r"the provenance in .*model.* cannot be read"):
        read_sidecar(tmp_path / "model")
