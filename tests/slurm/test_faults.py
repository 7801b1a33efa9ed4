"""Jobs, scheduler and node are lost in every way there is; products come out as if nothing had.

Most cases hit a training, which saves its state and resumes: afterwards weights and numbers must
equal those of a training that nobody disturbed.
"""

import os
import signal
import subprocess
from collections.abc import Iterable
from contextlib import suppress

import pytest

from ember.records.tables import read_table
from tests.slurm.conftest import (
    CLUSTER,
    MODEL,
    PROFILE,
    STATE,
    SWEEP,
    TRAINING,
    minutes,
    processes,
    settings,
    slurm,
    trained,
    until,
)

TRAIN = (MODEL, *PROFILE, *settings(TRAINING))
SCRIPT = "study.py"  # what a training runs; all that comes before it has ended


@pytest.fixture
def training(work, start):
    """A training through SLURM that has saved a state: the run and its job."""
    run = start(work, *TRAIN)
    job = run.running("train_model")
    run.until((work.path / STATE).exists, "the training saves its state")
    return run, job


def job_of(run, number: str) -> dict:
    return next(job for job in run.jobs() if job["JobId"] == number)


def resumed(run) -> bool:
    log = run.made.path / "logs/smoke/train_model_policy.log"
    return log.exists() and "resumed at step" in log.read_text()  # a new attempt begins without


def kill(pids: Iterable[int]) -> None:
    """Processes end with those that they belong to, so that some may be gone before their turn."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def hit_node(run, job):
    """The node dies with everything on it, is declared down, and comes back."""
    subprocess.run([CLUSTER, "node", "kill"], check=True)
    kill(job_processes(job))
    node = job["NodeList"]
    slurm("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    subprocess.run([CLUSTER, "node", "up"], check=True, capture_output=True)


def job_processes(job) -> list[int]:
    """Everything that runs under a job's step daemons, and these themselves."""
    number = job["JobId"]
    found = []
    for line in slurm("ps", "-eo", "pid,args").splitlines():
        pid, _, command = line.strip().partition(" ")
        if f"slurmstepd: [{number}." in command:
            found.append(int(pid))
    children = []
    for line in slurm("ps", "-eo", "pid,ppid").splitlines()[1:]:
        children.append(tuple(map(int, line.split())))
    grown = True
    while grown:
        more = [pid for pid, parent in children if parent in found and pid not in found]
        grown = bool(more)
        found += more
    return found


def test_a_training_whose_node_died_is_taken_up_where_it_was(training, undisturbed):
    run, job = training
    hit_node(run, job)
    output = run.succeeds()
    ends = [(job["JobState"], job["Restarts"]) for job in run.jobs("train_model")]
    assert ends == [("COMPLETED", "1")], f"SLURM queues it again: {output[-6000:]}"
    assert resumed(run)
    assert trained(run.made) == undisturbed


def test_a_training_cancelled_and_then_killed_is_taken_up_twice(training, undisturbed):
    run, first = training
    slurm("scancel", first["JobId"])
    run.until(lambda: job_of(run, first["JobId"])["JobState"] == "CANCELLED", "it is cancelled")
    second = run.running("train_model")
    assert second["JobId"] != first["JobId"]
    run.until(lambda: resumed(run), "the second job goes on")
    kill(processes(run.made, SCRIPT))
    run.succeeds()
    states = [job["JobState"] for job in run.jobs("train_model")]
    assert states == ["CANCELLED", "FAILED", "COMPLETED"]
    assert resumed(run)
    assert trained(run.made) == undisturbed
    assert not (run.made.path / STATE).exists()


def locked_and_unlocked(made):
    """What a user meets and types after the scheduler was killed."""
    refused = made.snakemake(*TRAIN, check=False)
    assert refused.returncode != 0
    assert "--unlock" in refused.stdout
    made.snakemake("--unlock", "--profile", "slurm", *settings(TRAINING))


def test_jobs_of_a_killed_scheduler_end_well_and_the_next_run_goes_on(training, undisturbed, start):
    run, job = training
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait()
    until(lambda: job_of(run, job["JobId"])["JobState"] == "COMPLETED", "the job ends")
    assert trained(run.made) == undisturbed
    # The job may have taken its own marks away: then there is nothing left to do, and no lock.
    again = run.made.snakemake(*TRAIN, "--dry-run", check=False)
    if "Nothing to be done" not in again.stdout:
        locked_and_unlocked(run.made)
    start(run.made, *TRAIN).succeeds()
    assert trained(run.made) == undisturbed


def test_a_workflow_killed_with_all_its_jobs_goes_on_where_it_was(training, undisturbed, start):
    run, job = training
    os.killpg(run.process.pid, signal.SIGKILL)
    run.process.wait()
    slurm("scancel", "--signal=KILL", "--full", job["JobId"])
    kill(job_processes(job))
    until(lambda: job_of(run, job["JobId"])["JobState"] != "RUNNING", "the job is gone")
    assert not (run.made.path / MODEL).exists()
    locked_and_unlocked(run.made)
    again = start(run.made, *TRAIN)
    again.succeeds()
    assert resumed(again)
    assert trained(run.made) == undisturbed


def test_a_job_over_its_memory_limit_gets_twice_as_much(work, start, undisturbed):
    run = start(work, *TRAIN, "resources={threads: 1, mem_mb: 400}")
    run.succeeds()
    first, second = run.jobs("train_model")
    assert (first["MinMemoryNode"], second["MinMemoryNode"]) == ("400M", "800M")
    assert minutes(second) == 2 * minutes(first)
    assert first["JobState"] in ("OUT_OF_MEMORY", "FAILED", "CANCELLED")
    assert "exceeded memory limit" in run.output()
    assert trained(work) == undisturbed


def test_a_job_that_hangs_is_ended_by_its_time_limit_and_tried_again(work, start, undisturbed):
    run = start(work, *TRAIN, "resources={threads: 1, runtime: 1}")
    run.running("train_model")
    run.until((work.path / STATE).exists, "the training saves its state")
    [stuck] = [pid for pid in processes(work, SCRIPT) if is_python(pid)]
    os.kill(stuck, signal.SIGSTOP)
    run.succeeds()
    first, second = run.jobs("train_model")
    assert first["JobState"] == "TIMEOUT"
    assert (minutes(first), minutes(second)) == (1, 2)
    assert resumed(run)
    assert trained(work) == undisturbed


def is_python(pid: int) -> bool:
    return os.readlink(f"/proc/{pid}/exe").rsplit("/", 1)[-1].startswith("python")


def test_preemption_costs_only_the_shard_that_was_lost(swept, start):
    """Partition high takes one job's place; SLURM queues that one again, the other stays."""
    shards = {name: swept.path / f"results/smoke/p1/prefix/shards/{name}.parquet" for name in "01"}
    before = read_table(swept.path / SWEEP)
    for path in (*shards.values(), swept.path / SWEEP):
        path.unlink()
    low = ("--default-resources", "runtime=30", "mem_mb=2000", "slurm_partition=low")
    run = start(swept, SWEEP, *PROFILE, *low, *settings())
    run.until(
        lambda: all(processes(swept, "study.py") and running(run, name) for name in shards),
        "both shards run",
    )
    # One CPU is left to one of the two.
    cpus = int(slurm("sinfo", "--noheader", "-p", "high", "-o", "%c")) - 1
    slurm("sbatch", "-p", "high", "-c", str(cpus), "-o", "/dev/null", "--wrap", "true")
    run.succeeds()
    restarts = [job["Restarts"] for job in run.jobs("sweep_prefix")]
    assert sorted(restarts) == ["0", "1"], run.jobs("sweep_prefix")
    after = read_table(swept.path / SWEEP)
    same = ["prompt_tokens", "prefix_tokens", "document", "shard", "cached", "reused_tokens"]
    assert after[same].equals(before[same])


def running(run, shard: str) -> bool:
    jobs = run.jobs(f"sweep_prefix_wildcards_{shard}")
    return any(job["JobState"] == "RUNNING" for job in jobs)
