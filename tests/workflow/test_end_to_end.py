"""Every rule, run for real at scale smoke, and what a reader can ask of the products."""

import os
import re
import select
import signal
import subprocess
import sys
import time
import zipfile

import pytest

from ember.records.tables import read_table, table_provenance
from tests.workflow.conftest import ELSEWHERE, ROOT, SMOKE, rules

pytestmark = pytest.mark.slow


def test_every_rule_that_exists_has_run(finished):
    ran = {path.stem for path in (finished.path / "results/smoke/benchmarks").glob("*.jsonl")}
    assert ran == {path.stem for path in (finished.path / "logs/smoke").glob("*.log")}
    # A rule with wildcards adds them to its benchmark's name.
    for rule in rules().keys() - ELSEWHERE:
        assert any(name == rule or name.startswith(f"{rule}_") for name in ran), rule


# Captions with other numbers than percentages, seconds and ratios.
OTHERS = (
    *("p1_lora_layers", "p1_lora_blocks", "p1_lora_latency", "p1_rollout"),
    *("streaming_losses", "streaming_times", "streaming_matrix", "streaming_control"),
    *("c2c_m11", "c2c_length", "c2c_sensitivity", "c2c_overlap"),
    *("lowbit_arms", "lowbit_memory", "lowbit_whoami", "lowbit_conversation"),
)
FIGURES = [name for _, text in rules().values() for name in re.findall(r"figure\(\"(\w+)", text)]
for drawing in ("architecture", "c2c_channel"):  # no measurement
    FIGURES.remove(drawing)


@pytest.mark.parametrize("name", FIGURES)
def test_figures_come_with_vector_caption_and_numbers(finished, name):
    results = finished.path / "results"
    assert (results / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert (results / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    caption = (results / f"{name}.caption.md").read_text()
    assert "scale smoke" in caption
    assert "no number here supports a claim" in caption
    assert name in OTHERS or re.search(r"\d+\.\d+ (%|s\b|times|\[)", caption)
    assert "nan" not in caption.lower()


def test_adapters_are_aligned_exact_and_judged(finished):
    rows = read_table(finished.path / "results/decisions.parquet")
    found = {d: group for d, group in rows.groupby("decision") if d.startswith("lora_")}
    assert set(found) == {"lora_alignment", "lora_weights", "lora_latency", "lora_exact"}
    aligned = found["lora_alignment"].set_index("subject")["verdict"]
    assert aligned["float32 against peft_forward"] == "aligned"
    assert aligned["float32 against manual_merge"] == "aligned"
    exact = found["lora_exact"].set_index("subject")["verdict"]
    assert exact["ember, base kept: device"] == exact["ember, base kept: host"] == "exact"


def test_every_table_is_whole_and_says_where_it_came_from(finished):
    tables = list((finished.path / "results").rglob("*.parquet"))
    assert len(tables) >= 18
    for path in tables:
        assert len(read_table(path)) > 0, path
        provenance = table_provenance(path)
        assert provenance["rule"], path
        assert provenance["code"], path
        assert provenance["config"]["scale"] == "smoke", path


def test_why_walks_back_from_the_figure_to_the_corpora(finished):
    done = subprocess.run(
        [sys.executable, "-m", "ember.commands.main", "why", "results/p1_fig3.png"],
        cwd=finished.path,
        env=finished.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for words in ("plot_fig3", "model_cost", "time_rollouts", "train_model", "build_corpus"):
        assert words in done.stdout, done.stdout


def test_the_workflow_knows_what_it_cost(finished):
    results = finished.path / "results"
    steps = read_table(results / "smoke/workflow/steps.parquet")
    assert set(steps["status"]) == {"ok"}, steps  # the no-op rerun had nothing to do
    planned = steps.set_index("step")["jobs"]
    assert planned["dry run of all"] > 25
    jobs = read_table(results / "workflow_jobs.parquet").set_index("job")
    assert {"build_corpus_long", "train_model_policy", "sweep_prefix_1", "decide"} <= set(
        jobs.index
    )
    assert set(jobs["wall_from"]) == {"benchmark"}
    files = [file for file in (ROOT / "rules").rglob("*.smk") if "\nuse rule" in file.read_text()]
    stages = {"_".join(file.relative_to(ROOT / "rules").with_suffix("").parts) for file in files}
    assert set(jobs["stage"]) == stages - {"bases", "workflow"}
    assert jobs["timing"].sum() >= 5
    cost = read_table(results / "workflow_cost.parquet")
    total = cost[cost["stage"] == "all"].iloc[0]
    assert total["jobs"] == len(jobs)
    assert total["wall_s"] == pytest.approx(jobs["wall_s"].sum())
    assert 0 < total["overhead_share"] < 1


def test_readiness_is_honest(finished):
    rows = read_table(finished.path / "results/readiness.parquet").set_index("item")
    assert rows.loc["Fig 3", "status"] == "partial"
    assert "modelled" in rows.loc["Fig 3", "basis"]
    for item in ("Fig 4", "Fig 5", "Table 2", "Sec 5.6"):
        assert rows.loc[item, "status"] == "missing"
        assert rows.loc[item, "missing"]


def test_a_product_of_another_scale_is_made_again(finished):
    planned = finished.snakemake("p1", "-n", "--profile", "local", "--config", "scale=tiny").stdout
    assert "plot_fig3" in planned


def test_a_lost_product_is_made_again_with_equal_numbers(finished):
    path = finished.path / "results/p1_policies.parquet"
    before = read_table(path)
    path.unlink()
    finished.snakemake("all", *SMOKE)
    assert read_table(path).equals(before)


def test_a_truncated_table_stops_the_job_that_reads_it_and_the_next_run_repairs_it(finished):
    path = finished.path / "results/smoke/p1/policies/cost.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    done = finished.snakemake("results/p1_fig3.png", *SMOKE, check=False)
    assert done.returncode != 0
    assert f"error: {path.relative_to(finished.path)}" in done.stdout
    assert "delete it and run" in done.stdout
    assert not (finished.path / "results/p1_fig3.png").exists()
    path.unlink()
    finished.snakemake("all", *SMOKE)
    assert read_table(path)["evidence"].eq("modelled").all()


def test_an_interrupted_training_resumes_and_leaves_no_half_model(fresh):
    # One thread: two that wait for each other are slow on a busy machine.
    longer = "models={policy: {training: {steps: 100, checkpoint_seconds: 0.2}}}"
    command = ("results/smoke/models/policy", *SMOKE, longer, "resources={threads: 1}")
    run = subprocess.Popen(
        [sys.executable, "-m", "snakemake", *command],
        cwd=fresh.path,
        env=fresh.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    state = fresh.path / "results/smoke/states/policy.pt"
    deadline = time.monotonic() + 120
    while not state.exists() and run.poll() is None and time.monotonic() < deadline:
        select.select([], [], [], 0.1)
    assert run.poll() is None, run.stdout.read()[-3000:]
    os.killpg(run.pid, signal.SIGINT)  # Ctrl-C reaches the whole foreground group
    output, _ = run.communicate(timeout=120)
    assert run.returncode != 0
    assert "Traceback" not in output, output[-3000:]
    assert state.exists()
    assert not (fresh.path / "results/smoke/models/policy").exists()
    fresh.snakemake(*command)
    log = (fresh.path / "logs/smoke/train_model_policy.log").read_text()
    assert "resum" in log
    assert (fresh.path / "results/smoke/models/policy/model.safetensors").exists()
    assert not state.exists()


def test_the_report_holds_every_figure(finished, tmp_path):
    report = tmp_path / "report.zip"
    finished.snakemake("all", "--report", str(report), *SMOKE)
    with zipfile.ZipFile(report) as archive:
        text = " ".join(archive.namelist())
    assert len(FIGURES) >= 10
    for name in FIGURES:
        assert f"{name}.png" in text
