"""What the workflow is started in: profiles, other code on the path, modules, locales, places."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from ember.measure.overhead import record_file
from tests.workflow.conftest import ROOT, SMOKE, Checkout, checkout

CORPUS = "results/smoke/corpora/long.parquet"
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def scales(output: str) -> set[str]:
    return {scale for scale in ("smoke", "tiny", "gpu", "paper") if f"results/{scale}/" in output}


@pytest.mark.parametrize(
    ("profile", "content", "config", "scale"),
    [
        ("slurm", "seed: 3", [], "gpu"),
        ("slurm", "scale: tiny", [], "tiny"),
        ("slurm", "scale: tiny", ["scale=smoke"], "smoke"),
        ("slurm", "seed: 3", ["seed=4"], "gpu"),
        ("local", "p1: {profile: {repeats: 3}}", [], "tiny"),
    ],
)
def test_a_file_of_ones_own_does_not_replace_the_profiles_scale(
    fresh, profile, content, config, scale
):
    (fresh.path / "mine.yaml").write_text(content + "\n")
    words = ["-n", "p1_gates", "--profile", profile, "--configfile", "mine.yaml"]
    words += ["--config", *config] if config else []
    assert scales(fresh.snakemake(*words).stdout) == {scale}


def test_another_ember_on_the_path_is_not_used(fresh, tmp_path):
    other = tmp_path / "other" / "ember"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("raise ImportError('the other ember')\n")
    for path in (f"{other.parent}", f"{other.parent}:{fresh.path / 'src'}"):
        fresh.snakemake(CORPUS, "--forcerun", CORPUS, *SMOKE, env={"PYTHONPATH": path})


OUTER = """
config["scale"] = {scale!r}
module ember:
    snakefile: {snakefile!r}
    config: config
use rule * from ember as ember_*
"""


def test_the_workflow_is_a_module_of_another_with_its_configuration(fresh, tmp_path):
    outer = tmp_path / "outer"
    outer.mkdir()
    text = OUTER.format(scale="smoke", snakefile=str(fresh.path / "Snakefile"))
    (outer / "Snakefile").write_text(text)
    Checkout(outer).snakemake(CORPUS, "--cores", "1")
    record = json.loads(record_file("smoke", "ember_build_corpus_long", outer).read_text())
    assert record["config"] == {"scale": "smoke"}
    # What the command line sets is the outer workflow's, and goes on through its `config`.
    planned = Checkout(outer).snakemake(
        "-n", "ember_p1_gates", "--cores", "1", "--config", "seed=7"
    )
    assert scales(planned.stdout) == {"smoke"}
    wrong = Checkout(outer).snakemake("-n", "--cores", "1", "--config", "sede=7", check=False)
    assert wrong.returncode
    assert "unknown key 'sede'" in wrong.stdout


def test_output_and_jobs_work_where_the_locale_is_ascii(fresh):
    fresh.snakemake(CORPUS, *SMOKE, env=ASCII)
    for words in (["show", CORPUS, "--rows", "2"], ["why", CORPUS], ["estimate", "--help"]):
        done = subprocess.run(
            [sys.executable, "-m", "ember.commands.main", *words],
            cwd=fresh.path,
            env=fresh.environment(ASCII | {"PYTHONIOENCODING": "ascii:strict"}),
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.isascii()


def test_what_snakemake_reads_by_the_locale_is_ascii():
    files = [ROOT / "Snakefile", *ROOT.glob("rules/**/*.smk"), *ROOT.glob("profiles/*/*.yaml")]
    assert len(files) > 5
    assert [str(file) for file in files if not file.read_bytes().isascii()] == []


def test_a_checkout_in_a_path_with_a_space_works(tmp_path):
    checkout(tmp_path / "a b" / "ember").snakemake(CORPUS, *SMOKE)


def test_a_cluster_that_is_not_here_is_refused_before_the_first_job(fresh, tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "sh", "git", "which", "env", "uname"):
        if found := shutil.which(name):
            (programs / name).symlink_to(found)
    env = {"PATH": os.fspath(programs)}
    words = ["--profile", "slurm", "--config", "scale=smoke"]
    done = fresh.snakemake(CORPUS, *words, check=False, env=env)
    assert done.returncode
    assert "no program sbatch on PATH" in done.stdout
    assert not (fresh.path / "logs").exists()
    assert fresh.snakemake("-n", CORPUS, *words, env=env), "a plan can be looked at anywhere"
