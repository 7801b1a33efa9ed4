"""The literal commands of the README, planned from a fresh checkout."""

import json

import pytest
import yaml

from ember.config.load import json_schema
from tests.workflow.conftest import ROOT


@pytest.mark.parametrize("profile", ["local", "slurm"])
def test_the_literal_command_plans_the_figure_from_a_fresh_checkout(fresh, profile):
    output = fresh.snakemake("--profile", profile, "-n", "results/p1_fig3.png").stdout
    assert "rule plot_fig3" in output
    assert "rule profile_rollout" in output
    scale = {"local": "tiny", "slurm": "gpu"}[profile]
    assert f"results/{scale}/p1/cumulative_cost.parquet" in output


def test_config_chooses_another_scale_than_the_profile(fresh):
    output = fresh.snakemake("p1", "-n", "--profile", "slurm", "--config", "seed=3").stdout
    assert "results/gpu/" in output, "another key on the command line must not lose the scale"
    output = fresh.snakemake("p1", "-n", "--profile", "slurm", "--config", "scale=smoke").stdout
    assert "results/smoke/" in output
    assert "results/gpu/" not in output


@pytest.mark.parametrize("scale", ["smoke", "tiny", "gpu", "paper"])
def test_every_scale_plans_everything(fresh, scale):
    output = fresh.snakemake("-n", "--profile", "local", "--config", f"scale={scale}").stdout
    assert "rule assess_readiness" in output


def test_every_measuring_rule_waits_for_the_gates(fresh):
    output = fresh.snakemake("--profile", "local", "-n", "all").stdout
    jobs = output.split("\nrule ")[1:]
    timed = [job for job in jobs if "timing=1" in job]
    assert len(timed) >= 4
    for job in timed:
        assert "p1/gates.parquet" in job.split("output:")[0], job


def test_the_dry_run_leaves_nothing_behind(fresh):
    fresh.snakemake("--profile", "local", "-n", "all")
    assert not (fresh.path / "results" / "tiny").exists()


def test_the_catalogue_finds_the_workflow(fresh):
    output = fresh.snakemake("-s", "workflow/Snakefile", "--profile", "local", "-n", "p1").stdout
    assert "rule plot_fig3" in output


def test_the_graph_can_be_drawn(fresh):
    output = fresh.snakemake("--profile", "local", "--rulegraph", "results/p1_fig3.png").stdout
    assert "digraph" in output
    assert "model_cost" in output


def test_every_rule_carries_its_scripts_code():
    for file in (ROOT / "rules").glob("*.smk"):
        for block in file.read_text().split("\nrule ")[1:]:
            name = block.split(":")[0]
            script = block.rsplit('scripts("', 1)[1].split('"')[0]
            assert f'code=code("{script}")' in block, f"{name}: code= must hash {script}"
            assert (ROOT / "workflow" / "scripts" / script).is_file(), name


def test_the_committed_schema_is_that_of_the_models():
    committed = (ROOT / "workflow" / "schemas" / "config.schema.json").read_text()
    assert json.loads(committed) == json.loads(json_schema()), (
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
