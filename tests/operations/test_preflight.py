"""What can be known to fail is said before any job starts."""

import errno
import os

import pytest

from ember.operations import preflight
from ember.operations.plan import run_scale
from ember.operations.preflight import (
    Unready,
    check_anchor,
    check_local,
    check_models,
    check_place,
    check_real,
    check_writable,
    prepare_environment,
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
    for pattern in ("*.txt", "**/*.txt"):  # as corpora.named_files resolves them
        absolute = {"long": {"paths": [str(tmp_path / "books" / pattern)]}}
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


def test_copies_of_fusers_and_questions_that_are_not_there_are_refused(tmp_path):
    def settings(fuser="nics-efc/C2C_Fuser", questions="allenai/openbookqa"):
        pairs = {"mine": {"fuser": {"source": fuser, "folder": "final"}}, "bare": {"fuser": None}}
        real = {"pairs": pairs, "benchmarks": {"obqa": {"source": questions}}}
        return {"c2c": {"real": real}}

    check_real({"c2c": {"real": None}}, tmp_path)
    check_real(settings(), tmp_path)  # ids on the hub
    with pytest.raises(Unready, match=r"pairs\.mine\.fuser\.source: there is no .*copy/final"):
        check_real(settings(fuser="./copy"), tmp_path)
    with pytest.raises(Unready, match=r"benchmarks\.obqa\.source: there is no .*obqa\.jsonl"):
        check_real(settings(questions="obqa.jsonl"), tmp_path)
    (tmp_path / "copy" / "final").mkdir(parents=True)
    (tmp_path / "obqa.jsonl").touch()
    check_real(settings("./copy", "obqa.jsonl"), tmp_path)
    check_real(settings(str(tmp_path / "copy"), str(tmp_path / "obqa.jsonl")), tmp_path)


def test_a_gpu_is_needed_only_where_jobs_run_here(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "cuda_devices", lambda: 0)
    monkeypatch.setattr(preflight.shutil, "which", lambda name: f"/usr/bin/{name}")
    settings = {"device": "cuda", "scale": "gpu"}
    with pytest.raises(Unready, match="scale gpu needs a GPU"):
        check_local(settings, tmp_path, "local")
    check_local(settings, tmp_path, "slurm")
    monkeypatch.setattr(preflight, "cuda_devices", lambda: 1)
    check_local(settings, tmp_path, "local")


def test_a_cluster_needs_its_programs_and_a_path_that_its_shell_takes(tmp_path, monkeypatch):
    settings = {"device": "cpu", "scale": "gpu"}
    monkeypatch.setattr(preflight.shutil, "which", lambda name: None)
    with pytest.raises(Unready, match="no program sbatch on PATH"):
        check_local(settings, tmp_path, "slurm")
    monkeypatch.setattr(preflight.shutil, "which", lambda name: name)
    check_local(settings, tmp_path, "slurm")
    check_local(settings, tmp_path / "a b", "local")
    with pytest.raises(Unready, match="has spaces"):
        check_local(settings, tmp_path / "a b", "slurm")


@pytest.mark.parametrize("python", ["/home/a b/.venv/bin/python", "/home/$x/python", "/o'k/python"])
def test_an_environment_that_jobs_cannot_be_started_with_is_refused(tmp_path, python):
    with pytest.raises(Unready, match="cannot start jobs with"):
        check_place(tmp_path, python)
    check_place(tmp_path, "/home/a/.venv/bin/python")


def test_jobs_find_this_library_first_and_know_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/other/src", str(tmp_path), "/more"]))
    monkeypatch.setenv("EMBER_RUN", "[]")
    prepare_environment(tmp_path, ["snakemake", "--profile", "slurm"])
    paths = os.environ["PYTHONPATH"].split(os.pathsep)
    assert paths == [str(tmp_path), "/other/src", "/more"]
    assert run_scale() == "gpu"


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
