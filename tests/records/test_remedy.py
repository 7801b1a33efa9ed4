"""The command that a message prints: of the run that is going on, and one that can be typed."""

import shlex
import sys

import pytest

from ember.records import remedy


@pytest.fixture(autouse=True)
def no_run(monkeypatch):
    monkeypatch.delenv("EMBER_RUN", raising=False)


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("snakemake all -n --profile slurm", "--profile slurm"),
        (
            "snakemake p1 --configfile a.yaml b.yaml --profile local --config scale=tiny seed=3",
            "--profile local --configfile a.yaml b.yaml --config scale=tiny seed=3",
        ),
        ("snakemake -C seed=3 -d elsewhere", "--directory elsewhere --config seed=3"),
        ("snakemake --profile=local -s /a/Snakefile", "--profile local --snakefile /a/Snakefile"),
        ("snakemake --conf scale=tiny", ""),
        ("pytest -x tests", ""),
    ],
)
def test_options_of_the_run_are_kept(typed, kept):
    assert remedy.run_options(shlex.split(typed)) == shlex.split(kept)


def test_jobs_name_the_run_that_started_them(monkeypatch):
    environ = {}
    remedy.remember(["snakemake", "x", "--profile", "slurm", "--config", "p={a: 1}"], environ)
    remedy.remember(["snakemake", "--target-jobs", "x:", "--profile", "none"], environ)
    monkeypatch.setenv("EMBER_RUN", environ["EMBER_RUN"])
    words = shlex.split(remedy.remake("results/tiny/a b.parquet"))
    assert words[1:] == ["--profile", "slurm", "results/tiny/a b.parquet", "--config", "p={a: 1}"]
    assert remedy.again("x").startswith("delete it and run `")


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("results/p1_fig3.png", ""),
        ("results/gpu/p1/gates.parquet", "--config scale=gpu"),
        ("/a/results/gpu/p1/gates.parquet", "--config scale=gpu"),
        ("elsewhere/table.parquet", ""),
    ],
)
def test_without_a_run_the_path_says_the_scale(path, options):
    words = ["--profile", "local", path, *shlex.split(options)]
    assert shlex.split(remedy.remake(path))[1:] == words


@pytest.mark.parametrize("damaged", ["{", "7", '"all"'])
def test_a_damaged_memory_of_the_run_is_none(monkeypatch, damaged):
    monkeypatch.setenv("EMBER_RUN", damaged)
    assert remedy.remake("results/x.png").endswith("snakemake --profile local results/x.png")


def test_a_program_is_named_so_that_it_is_found(tmp_path, monkeypatch):
    own = tmp_path / ".venv/bin"
    own.mkdir(parents=True)
    for name in ("python", "snakemake"):
        (own / name).touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(own / "python"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin")
    assert remedy.program("snakemake") == ".venv/bin/snakemake"
    monkeypatch.chdir(own)
    monkeypatch.setenv("PATH", str(own))
    assert remedy.program("snakemake") == "snakemake"
    monkeypatch.chdir("/usr")
    monkeypatch.setenv("PATH", "/usr/bin")
    assert remedy.program("snakemake") == str(own / "snakemake")
    assert remedy.program("none") == "none"
