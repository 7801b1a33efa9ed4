"""What sbatch is really asked for: partition, account, GPU, CPUs, memory and time of each job."""

import signal

import pytest

from tests.slurm.conftest import PROFILE, minutes, settings, until
from tests.workflow.conftest import checkout

# Two rules that wait for nothing; their jobs are held in the queue, read there and never run.
GATES = ("results/smoke/p1/gates/environment.parquet", "results/smoke/p1/gates/outputs.parquet")
HELD = ("--default-resources", "runtime=30", "mem_mb=2000", "slurm_extra='--hold'")


@pytest.fixture
def fresh(tmp_path):
    return checkout(tmp_path / "ember")


def queued(run, *rules) -> dict[str, dict]:
    """Jobs by rule, once one of each of these rules is in the queue."""

    def found():
        jobs = {job["Comment"].removeprefix("rule_"): job for job in run.jobs()}
        return jobs if all(rule in jobs for rule in rules) else None

    return run.until(found, f"{', '.join(rules)} are queued")


def test_the_literal_profile_asks_for_a_gpu_where_a_rule_needs_one(fresh, start):
    run = start(fresh, "p1_gates", "--profile", "slurm", *HELD)  # scale gpu: the profile's own
    jobs = queued(run, "gate_environment", "gate_outputs")
    assert jobs["gate_environment"]["TresPerJob"] == "gres:gpu:1"
    assert "TresPerJob" not in jobs["gate_outputs"]
    for job in jobs.values():
        assert job["Partition"] == "main", "the cluster's default, where none is given"


def test_partition_account_memory_time_and_cpus_come_from_profile_and_rules(fresh, start):
    run = start(
        fresh,
        *GATES,
        *PROFILE,
        *HELD,
        *("slurm_partition=short", "slurm_account=paper"),
        *("--set-resources", "gate_outputs:slurm_partition=high", "gate_outputs:gpu=2"),
        *("gate_outputs:mem_mb=1500", "gate_outputs:runtime=7"),
        *("gate_environment:gpu=1", "gate_environment:gpu_model=fake"),
        *settings(),
    )
    jobs = queued(run, "gate_environment", "gate_outputs")
    plain, changed = jobs["gate_environment"], jobs["gate_outputs"]
    assert (plain["Partition"], changed["Partition"]) == ("short", "high")
    assert plain["Account"] == changed["Account"] == "paper"
    assert (plain["MinMemoryNode"], changed["MinMemoryNode"]) == ("1000M", "1500M")
    assert 0 < minutes(plain) < 30, "the rule's own, not the profile's default"
    assert minutes(changed) == 7
    assert plain["TresPerJob"] == "gres:gpu:fake:1"
    assert changed["TresPerJob"] == "gres:gpu:2"
    assert changed["NumCPUs"] == "1"


def test_ctrl_c_takes_the_jobs_out_of_the_queue(fresh, start):
    run = start(fresh, *GATES, *PROFILE, *HELD, *settings())
    queued(run, "gate_environment", "gate_outputs")
    run.process.send_signal(signal.SIGINT)
    run.fails()
    until(
        lambda: all(job["JobState"] == "CANCELLED" for job in run.jobs()),
        "the jobs are cancelled",
        run.output,
    )
    # Nothing is left to unlock or to clean: the next run plans the same.
    done = fresh.snakemake(*GATES, "-n", "--profile", "slurm", *settings())
    assert "gate_environment" in done.stdout


def test_a_gpu_that_no_node_has_is_refused_at_once(fresh, start):
    run = start(
        fresh,
        "results/smoke/p1/gates/outputs.parquet",
        *PROFILE,
        *("--retries", "0", "--set-resources", "gate_outputs:gpu=3"),
        *settings(),
    )
    assert "Requested node configuration is not available" in run.fails()
