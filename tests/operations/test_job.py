"""A job ends with one clear message and leaves whole products with their provenance, or none."""

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ember.operations import job
from ember.records.errors import EmberError
from ember.records.provenance import digest
from ember.records.schema import EVIDENCE, Column, Schema
from ember.records.tables import read_table, table_provenance

TABLE = Schema("table", "A table", (Column("x", "int"), EVIDENCE))


class Files(list):
    """Like Snakemake's lists of files and parameters."""

    def items(self):
        return self.named.items()

    def get(self, key, default=None):
        return self.named.get(key, default)

    def __init__(self, files=(), **named):
        super().__init__([*files, *named.values()])
        self.named = named


@pytest.fixture
def snakemake(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield SimpleNamespace(
        rule="measure",
        input=Files(),
        output=Files(["results/table.parquet"]),
        params=Files(seed=7, code="abc", runtime={"device": "cpu", "seed": 3}),
        wildcards=Files(model="policy"),
        threads=1,
        resources=Files(timing=1, gpu=0),
        log=["logs/measure.log"],
        config={"scale": "smoke"},
    )
    logging.basicConfig(force=True)


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (EmberError("the model is missing\nset models.policy.path"), 1, "set models.policy.path"),
        (KeyboardInterrupt(), 130, "the next run resumes"),
        (MemoryError(), 1, "out of memory"),
        (OutOfMemoryError("CUDA out of memory. Tried 2 GiB\nmore"), 1, "Tried 2 GiB; use a small"),
    ],
)
def test_a_failure_is_one_message_and_a_status(snakemake, tmp_path, error, status, said):
    with pytest.raises(SystemExit) as ended, job.start(snakemake):
        raise error
    assert ended.value.code == status
    log = (tmp_path / "logs/measure.log").read_text()
    assert said in log
    assert "Traceback" not in log


def test_an_error_of_ours_keeps_its_traceback(snakemake, tmp_path):
    with pytest.raises(ZeroDivisionError), job.start(snakemake):
        _ = 1 / 0
    assert "ZeroDivisionError" in (tmp_path / "logs/measure.log").read_text()


def test_a_table_carries_rule_parameters_seed_and_machine(snakemake, tmp_path):
    with job.start(snakemake) as run:
        run.table([{"x": 1, "evidence": "measured"}], TABLE)
    assert run.stem.name == "table"
    assert list(read_table("results/table.parquet", TABLE)["x"]) == [1]
    provenance = table_provenance("results/table.parquet")
    assert provenance["rule"] == "measure"
    assert provenance["code"] == "abc"
    assert provenance["seeds"] == {"seed": 7}
    assert provenance["params"]["model"] == "policy"
    assert provenance["config"] == {"scale": "smoke"}
    assert provenance["hardware"]["cores"] >= 1
    assert provenance["seconds"] >= 0


def test_a_failed_job_writes_nothing(snakemake, tmp_path):
    with pytest.raises(SystemExit), job.start(snakemake) as run:
        run.table([{"x": "one", "evidence": "measured"}], TABLE)
    assert not (tmp_path / "results/table.parquet").exists()
    assert "column x" in (tmp_path / "logs/measure.log").read_text()


def test_a_finished_job_leaves_a_record_of_its_products_and_times(snakemake, tmp_path):
    with job.start(snakemake) as run:
        run.table([{"x": 1, "evidence": "measured"}], TABLE)
    record = json.loads((tmp_path / "results/smoke/benchmarks/measure_policy.job.json").read_text())
    assert record["started"] == table_provenance("results/table.parquet")["started"]
    [product] = record["products"]
    assert (product["path"], product["sha256"]) == (
        "results/table.parquet",
        digest("results/table.parquet")[0],
    )
    times = record["times"]
    assert all(times[f"{name}_s"] >= 0 for name in ("start", "elapsed", *job.PARTS))
    assert times["imports_s"] > 0, "a job that runs a model imports torch before its body"


@pytest.mark.parametrize(("resources", "asleep"), [({}, True), ({"timing": 1}, False)])
def test_threads_wait_asleep_unless_times_are_measured(snakemake, monkeypatch, resources, asleep):
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    for name in names:
        monkeypatch.setenv(name, "")  # put back after it
        monkeypatch.delenv(name)
    snakemake.resources = resources
    with job.start(snakemake) as run:
        assert all((name in os.environ) == asleep for name in names)
        run.table([{"x": 1, "evidence": "measured"}], TABLE)


def test_a_failed_job_leaves_no_record(snakemake, tmp_path):
    with pytest.raises(SystemExit), job.start(snakemake):
        raise EmberError("no")
    assert not (tmp_path / "results").exists()


GROWING = """
import sys, time
sys.path.insert(0, {tests!r})
from types import SimpleNamespace
from test_job import Files
from ember.operations import job

held = []
with job.start(SimpleNamespace(
    rule="grow", input=Files(), output=Files(["table.parquet"]), wildcards=Files(), threads=1,
    params=Files(runtime={{"device": "cpu"}}), resources=Files(), log=["logs/grow.log"],
    config={{"scale": "smoke", "resources": {{"guard_gb": 0.7}}}},
)):
    while True:
        held.append(bytearray(b"1" * 10_000_000))
        time.sleep(0.005)
"""


def test_a_job_that_holds_a_model_is_ended_at_the_memory_limit_and_says_so(tmp_path):
    text = GROWING.format(tests=str(Path(__file__).parent))
    ended = subprocess.run([sys.executable, "-c", text], cwd=tmp_path, timeout=120)
    assert ended.returncode == -signal.SIGTERM
    log = (tmp_path / "logs/grow.log").read_text()
    assert "rule grow starts" in log
    assert "above its limit of 0.7 GB" in log
    assert not (tmp_path / "table.parquet").exists()
