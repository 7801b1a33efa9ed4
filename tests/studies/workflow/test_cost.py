"""Costs of jobs: from what was recorded, of the run that made the product, and adding up."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ember.records.errors import BadProvenance
from ember.records.schema import EVIDENCE, Column, Schema
from ember.records.tables import write_table
from ember.studies.workflow.cost.make import collect_jobs
from ember.studies.workflow.cost.summary import cost_by_rule, scheduling_s
from ember.studies.workflow.cost.tables import OVERHEAD, WORKFLOW_COST, WORKFLOW_JOBS

TABLE = Schema("table", "A table", (Column("x", "int"), EVIDENCE))
PARTS = {"start_s": 1.0, "imports_s": 2.0, "model_load_s": 0.5, "provenance_s": 0.25}


def made(root, name, *, inputs=(), started="2026-01-01T00:00:00+00:00", gpus=0, scale="smoke"):
    """A product with the provenance of a job `name`."""
    path = f"results/{name}.parquet"
    provenance = {
        "rule": name.split("_")[0],
        "inputs": [{"path": item, "sha256": ""} for item in inputs],
        "outputs": [path],
        "config": {"scale": scale},
        "job": {"name": name, "timing": False, "gpus": gpus},
        "started": started,
        "seconds": 8.0,
        "threads": 2,
        "hardware": {"cpu": "a CPU", "cores": 2, "gpus": [{"name": "a GPU"}]},
    }
    write_table(root / path, [{"x": 1, "evidence": "measured"}], TABLE, provenance)
    return path


def timed(root, name, *, started="2026-01-01T00:00:00+00:00", elapsed=9.0, wall=10.5):
    folder = root / "results/smoke/benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    record = {"started": started, "times": {"elapsed_s": elapsed} | PARTS}
    (folder / f"{name}.job.json").write_text(json.dumps(record) + "\n")
    line = {"s": wall, "cpu_time": 12.0, "max_rss": 300.0}
    (folder / f"{name}.jsonl").write_text(json.dumps(line) + "\n")


def collect(root, *products):
    return {row["job"]: row for row in collect_jobs(products, {"measure": "p1_profile"}, root)}


def test_a_job_is_split_into_its_parts(tmp_path):
    product = made(tmp_path, "measure_a", gpus=1)
    timed(tmp_path, "measure_a")
    row = collect(tmp_path, product)["measure_a"]
    assert (row["wall_s"], row["wall_from"]) == (10.5, "benchmark")
    assert {key: row[key] for key in PARTS} == PARTS
    assert row["exit_s"] == pytest.approx(10.5 - 9.0 - 1.0)
    assert row["work_s"] == pytest.approx(10.5 - 1.0 - 2.0 - 0.5 - 0.25 - 0.5)
    assert (row["stage"], row["device"], row["max_rss_mb"]) == ("p1_profile", "a GPU", 300.0)
    assert row["output_bytes"] == (tmp_path / product).stat().st_size
    write_table(tmp_path / "jobs.parquet", [row], WORKFLOW_JOBS)


def test_the_walk_finds_every_job_behind_a_product_once(tmp_path):
    first = made(tmp_path, "corpus")
    second = made(tmp_path, "measure_a", inputs=[first])
    third = made(tmp_path, "measure_b", inputs=[first, "results/missing.parquet"])
    last = made(tmp_path, "plot", inputs=[second, third])
    assert set(collect(tmp_path, last)) == {"corpus", "measure_a", "measure_b", "plot"}


def test_times_of_another_run_are_not_taken(tmp_path):
    product = made(tmp_path, "measure_a", started="2026-02-02T00:00:00+00:00")
    timed(tmp_path, "measure_a")
    row = collect(tmp_path, product)["measure_a"]
    assert (row["wall_s"], row["wall_from"]) == (8.0, "job")
    assert row["imports_s"] is row["work_s"] is row["max_rss_mb"] is None


def test_a_benchmark_that_is_shorter_than_the_job_is_not_believed(tmp_path):
    product = made(tmp_path, "measure_a")
    timed(tmp_path, "measure_a", wall=3.0)
    row = collect(tmp_path, product)["measure_a"]
    assert (row["wall_s"], row["wall_from"], row["exit_s"]) == (10.0, "job", 0.0)


@pytest.mark.parametrize("damage", ["", "not json", "[1, 2]"])
def test_a_damaged_record_leaves_the_job_with_what_its_product_says(tmp_path, damage):
    product = made(tmp_path, "measure_a")
    timed(tmp_path, "measure_a")
    (tmp_path / "results/smoke/benchmarks/measure_a.job.json").write_text(damage)
    assert collect(tmp_path, product)["measure_a"]["wall_s"] == 8.0


def test_products_without_provenance_are_an_error_that_says_so(tmp_path):
    with pytest.raises(BadProvenance, match="no product says"):
        collect_jobs(["results/none.parquet"], {}, tmp_path)


def job(rule, wall, parts, stage="p1", scale="tiny"):
    return {"scale": scale, "stage": stage, "rule": rule, "wall_s": wall} | parts


def step(name, seconds):
    return {"step": name, "seconds": seconds, "status": "ok", "cores": 4}


STEPS = [step("empty job", 0.9), step("empty job", 1.1), step("its process", 0.5)]


def test_scheduling_is_an_empty_job_less_its_process():
    assert scheduling_s(STEPS) == pytest.approx(0.5)
    with pytest.raises(BadProvenance, match="time_workflow"):
        scheduling_s(STEPS[:2])


seconds = st.floats(0, 50)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "c"]),
            st.sampled_from(["p1", "c2c"]),
            st.fixed_dictionaries(dict.fromkeys([*OVERHEAD, "work_s"], seconds)),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_the_total_is_the_sum_of_its_rules_and_shares_are_fractions(tmp_path_factory, drawn):
    jobs = [job(f"{rule}_{stage}", sum(p.values()) + 0.1, p, stage) for rule, stage, p in drawn]
    rows = cost_by_rule(jobs, STEPS, goal=0.15)
    [total] = [row for row in rows if row["stage"] == "all"]
    rules = [row for row in rows if row["rule"] != "all"]
    assert total == rows[0]
    assert total["jobs"] == sum(row["jobs"] for row in rules) == len(jobs)
    for key in ("wall_s", "work_s", "imports_s", "scheduling_s"):
        assert total[key] == pytest.approx(sum(row[key] for row in rules))
    assert sum(row["share"] for row in rules) == pytest.approx(1.0)
    assert all(0 <= row["overhead_share"] <= 1 for row in rows)
    path = tmp_path_factory.mktemp("cost") / "cost.parquet"
    write_table(path, rows, WORKFLOW_COST)


def test_an_overhead_that_is_not_known_is_not_invented():
    known = dict.fromkeys([*OVERHEAD, "work_s"], 1.0)
    jobs = [job("a", 6.0, known), job("b", 8.0, dict.fromkeys(known))]
    rows = {
        row["rule"]: row for row in cost_by_rule(jobs, STEPS, goal=0.15) if row["rule"] != "all"
    }
    assert rows["a"]["overhead_share"] == pytest.approx(5.5 / 6.5)
    assert rows["b"]["overhead_share"] is None
