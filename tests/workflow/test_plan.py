"""The literal commands of the README, planned from a fresh checkout."""

import re

import pytest
import yaml

from ember.config.load import json_schema
from tests.workflow.conftest import ROOT


@pytest.mark.parametrize("profile", ["local", "slurm"])
def test_the_literal_command_plans_the_figure_from_a_fresh_checkout(fresh, profile):
    output = fresh.snakemake("--profile", profile, "-n", "results/p1_fig3.png").stdout
    assert "plot_fig3" in output
    assert "profile_rollout" in output
    assert {"local": "train_model", "slurm": "fetch_model"}[profile] in output


def test_config_chooses_another_scale_than_the_profile(fresh):
    # At scale gpu the measured model has declared random weights, at smoke it is trained.
    output = fresh.snakemake("p1", "-n", "--profile", "slurm", "--config", "seed=3").stdout
    assert "fetch_model" in output, "another key on the command line must not lose the scale"
    output = fresh.snakemake("p1", "-n", "--profile", "slurm", "--config", "scale=smoke").stdout
    assert "train_model" in output


@pytest.mark.parametrize("scale", ["smoke", "tiny", "gpu", "paper"])
def test_every_scale_plans_everything(fresh, scale):
    output = fresh.snakemake("-n", "--profile", "local", "--config", f"scale={scale}").stdout
    assert "assess_readiness" in output


def blocks() -> dict[str, str]:
    """The text of every rule, by name."""
    texts = [file.read_text() for file in (ROOT / "rules").glob("*.smk")]
    return {block.split(":")[0]: block for text in texts for block in text.split("\nrule ")[1:]}


def test_every_measuring_rule_waits_for_the_gates():
    timed = {name: block for name, block in blocks().items() if "timing=1" in block}
    assert "P1_PRODUCTS" in timed.pop("time_workflow")  # it times the workflow, behind everything
    assert len(timed) >= 4
    for name, block in timed.items():
        assert 'gates=inter("p1/gates.parquet")' in block.split("output:")[0], name


def test_only_light_rules_and_downloads_run_where_a_cluster_run_was_started():
    texts = [file.read_text() for file in (ROOT / "rules").glob("*.smk")]
    lists = re.findall(r"^localrules:\n((?:    \w+,\n)+)", "\n".join(texts), re.M)
    local = {name.strip(" ,") for found in lists for name in found.splitlines()}
    assert {"fetch_model", "build_corpus", "plot_fig3", "decide"} <= local
    heavy = ("model_memory()", "threads_for_model()", "gpus()")
    for name, block in blocks().items():
        assert name not in local or not any(word in block for word in heavy), name


def test_the_dry_run_leaves_nothing_behind(fresh):
    fresh.snakemake("--profile", "local", "-n", "all")
    assert not (fresh.path / "results" / "tiny").exists()


def test_the_catalogue_finds_the_workflow(fresh):
    output = fresh.snakemake("-s", "workflow/Snakefile", "--profile", "local", "-n", "p1").stdout
    assert "plot_fig3" in output


def test_the_graph_can_be_drawn(fresh):
    output = fresh.snakemake("results/p1_fig3.png", "--profile", "local", "--rulegraph").stdout
    assert "digraph" in output
    assert "model_cost" in output


def test_every_rule_is_complete():
    for name, block in blocks().items():
        for directive in ("message:", "log:", "benchmark:", "threads:", "mem_mb=", "runtime="):
            assert directive in block, f"{name} has no {directive}"
        script = block.rsplit('scripts("', 1)[1].split('"')[0]
        assert f'code=code("{script}")' in block, f"{name}: code= must hash {script}"
        assert (ROOT / "workflow" / "scripts" / script).is_file(), name


def test_the_committed_schema_is_that_of_the_models():
    committed = (ROOT / "workflow" / "schemas" / "config.schema.json").read_text()
    assert committed == json_schema(), (
        "run: ember config-schema > workflow/schemas/config.schema.json"
    )


def test_the_conda_environment_has_the_pins_of_the_constraints():
    pins = dict(
        line.strip().lower().split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    environment = yaml.safe_load((ROOT / "workflow/envs/ember.yaml").read_text())
    [pip] = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    for requirement in pip:
        name, version = requirement.lower().split("==")
        assert pins[name] == version
