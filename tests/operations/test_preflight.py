"""What can be known to fail is said before any job starts."""

import errno

import pytest

from ember.operations import preflight
from ember.operations.preflight import (
    Unready,
    check_anchor,
    check_local,
    check_models,
    check_writable,
)

MODELS = {"policy": {"source": "local", "path": "weights"}}


def test_a_model_directory_without_a_config_is_refused(tmp_path):
    (tmp_path / "weights").mkdir()
    with pytest.raises(Unready, match=r"models\.policy\.path: weights"):
        check_models({"models": MODELS, "corpora": {}}, tmp_path)
    (tmp_path / "weights" / "config.json").write_text("{}")
    check_models({"models": MODELS, "corpora": {}}, tmp_path)


def test_text_files_that_are_not_there_are_refused(tmp_path):
    corpora = {"long": {"paths": ["books/*.txt"]}}
    with pytest.raises(Unready, match=r"corpora\.long\.paths: nothing matches books"):
        check_models({"models": {}, "corpora": corpora}, tmp_path)
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_text("text")
    check_models({"models": {}, "corpora": corpora}, tmp_path)
    absolute = {"long": {"paths": [str(tmp_path / "books" / "*.txt")]}}
    check_models({"models": {}, "corpora": absolute}, tmp_path)


def test_an_anchor_that_is_not_there_or_is_the_product_itself_is_refused(tmp_path):
    def settings(anchor):
        return {"p1": {"pipeline": {"anchor": anchor}}}

    check_anchor(settings(None), tmp_path)
    with pytest.raises(Unready, match=r"anchor: old\.parquet does not exist"):
        check_anchor(settings("old.parquet"), tmp_path)
    (tmp_path / "old.parquet").touch()
    check_anchor(settings("old.parquet"), tmp_path)
    with pytest.raises(Unready, match="the table that this run makes"):
        check_anchor(settings("results/p1_pipeline.parquet"), tmp_path)


def test_a_gpu_is_needed_only_where_jobs_run_here(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "cuda_devices", lambda: 0)
    settings = {"device": "cuda", "scale": "gpu"}
    with pytest.raises(Unready, match="scale gpu needs a GPU"):
        check_local(settings, tmp_path, local=True)
    check_local(settings, tmp_path, local=False)
    monkeypatch.setattr(preflight, "cuda_devices", lambda: 1)
    check_local(settings, tmp_path, local=True)


def test_a_folder_that_cannot_be_made_or_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "results").write_text("in the way")
    with pytest.raises(Unready, match="cannot write to"):
        check_writable(tmp_path / "results")

    def full(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(preflight.tempfile, "mkstemp", full)
    with pytest.raises(Unready, match="No space left on device"):
        check_writable(tmp_path / "elsewhere")


def test_a_writable_folder_is_left_as_it_was(tmp_path):
    check_writable(tmp_path / "results")
    assert list((tmp_path / "results").iterdir()) == []
