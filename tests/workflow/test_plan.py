"""The literal commands of the README, planned from a fresh checkout."""

import ast
import re
import sys
import tomllib

import pytest
import yaml

from ember.config.load import json_schema
from ember.operations.plan import PlannedJob, Settings, planned_jobs
from ember.studies.steps import find
from tests.workflow.conftest import ELSEWHERE, ROOT, rules

STEP = re.compile(r"\*\*(study|publish|plot)\(\"([\w.]+)\"\)")


@pytest.mark.parametrize("profile", ["local", "slurm"])
def test_the_literal_command_plans_the_figure_from_a_fresh_checkout(fresh, profile):
    output = fresh.snakemake("--profile", profile, "-n", "results/p1_fig3.png").stdout
    assert "plot_fig3" in output
    assert "time_rollouts" in output
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


@pytest.fixture(scope="module")
def jobs() -> list[PlannedJob]:
    """Every job of a run at scale smoke."""
    return planned_jobs(["all"], Settings(config=("scale=smoke",)), every=True)


def test_every_measuring_rule_waits_for_the_gates(jobs):
    """P1's: the gates are those of the model that P1 measures."""
    timed = {
        job.name: job
        for job in jobs
        if job.resources.get("timing")
        and any("/p1/" in path or "/p1_" in path or "workflow" in path for path in job.outputs)
    }
    products = {path for job in jobs for path in job.outputs if path.endswith((".png", ".tex"))}
    last = set(timed.pop("time_workflow").inputs)  # it times the workflow, after everything
    assert {path for path in products if "p1_" in path} <= last
    assert len(timed) >= 10
    for name, job in timed.items():
        assert "results/smoke/p1/gates.parquet" in job.inputs, name


def test_only_light_rules_and_downloads_run_where_a_cluster_run_was_started():
    local = {name for name, (_, text) in rules().items() if "localrule: True" in text}
    assert {"fetch_model", "build_corpus", "plot_fig3", "decide"} <= local
    for name in local:
        base, text = rules()[name]
        assert base in ("job", "larger", "drawn"), f"{name} holds a model"
        assert "threads:" not in text, name
    assert {name for name, (base, _) in rules().items() if base == "drawn"} <= local


def test_no_rule_to_inherit_from_is_a_target(fresh):
    bases = {base for base, _ in rules().values()}
    assert {"job", "held", "timed"} <= bases
    targets = fresh.snakemake("--list-target-rules").stdout.split()
    assert {"all", "p1_fig2", "decide"} <= set(targets)
    assert not bases & set(targets)
    done = fresh.snakemake("-n", "held", "--profile", "local", check=False)
    assert done.returncode
    assert "wildcards" in done.stdout


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


def test_every_rule_is_complete(jobs):
    planned = {job.rule: job for job in jobs}
    for name, (_, text) in rules().items():
        assert "message:" in text, name
        assert re.search(r"\*\*(study|publish|plot|own_script)\(", text), f"{name} runs no code"
        if name in ELSEWHERE:
            continue
        job = planned[name]
        assert job.benchmark == f"results/smoke/benchmarks/{job.name}.jsonl"
        assert {"mem_mb", "runtime"} <= job.resources.keys(), name


def test_every_step_names_a_function_that_says_what_it_makes():
    steps = [step for _, text in rules().values() for step in STEP.findall(text)]
    assert len(steps) > 40
    for kind, name in steps:
        step = find(name)
        assert (step.reads if kind == "plot" else step.makes) is not None, name
        assert len(step.makes) == 1 if kind == "publish" else True, name


def test_the_committed_schema_is_that_of_the_models():
    committed = (ROOT / "workflow" / "schemas" / "config.schema.json").read_text()
    assert committed == json_schema(), (
        "run: ember config-schema > workflow/schemas/config.schema.json"
    )


def pins(lines) -> dict[str, str]:
    """Versions by the names of packages, as pip compares them."""
    pairs = (line.strip().lower().split("==") for line in lines if "==" in line)
    return {name.replace("_", "-"): version for name, version in pairs}


def imported(files) -> set[str]:
    """Top-level names of what Python files import from elsewhere, inside functions too."""
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text("utf-8")))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    froms = {n.module for n in nodes if isinstance(n, ast.ImportFrom) and not n.level}
    return {name.split(".")[0] for name in names | froms} - {"ember", *sys.stdlib_module_names}


def test_the_conda_environment_has_what_jobs_import_with_the_pins_of_the_constraints():
    environment = yaml.safe_load((ROOT / "workflow/envs/ember.yaml").read_text())
    [pip] = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    has = pins(pip)
    assert len(has) == len(pip), "all are pinned"
    constraints = pins((ROOT / "constraints.txt").read_text().splitlines())
    assert has == {name: constraints[name] for name in has}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["peers"]]
    assert {re.match(r"[\w-]+", requirement)[0] for requirement in needed} <= has.keys()
    # Other frameworks have environments of their own; torch brings Triton where there is a GPU.
    adapters = ROOT / "src/ember/peers/adapters"
    files = [f for f in (ROOT / "src").rglob("*.py") if not f.is_relative_to(adapters)]
    names = imported([*files, *(ROOT / "workflow/scripts").glob("*.py")]) - {"triton"}
    assert {{"yaml": "pyyaml"}.get(name, name.replace("_", "-")) for name in names} <= has.keys()
