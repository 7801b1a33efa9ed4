"""The dry run as data."""

import pytest

from ember.operations.plan import BadPlan, Settings, planned_jobs


def test_the_jobs_behind_a_figure_come_with_files_and_resources(tmp_path):
    jobs = planned_jobs(["results/p1_fig3.png"], Settings(config=("scale=smoke",)), folder=tmp_path)
    named = {job.name: job for job in jobs}
    assert named["build_corpus_long"].outputs == ("results/smoke/corpora/long.parquet",)
    assert named["train_model_policy"].threads >= 1
    timed = [name for name, job in named.items() if job.resources.get("timing")]
    assert {"time_rollouts", "sweep_restart"} <= set(timed)
    made = {path for job in jobs for path in job.outputs}
    needed = {path for job in jobs for path in job.inputs}
    assert needed <= made
    assert all(job.reason and job.resources["mem_mb"] > 0 for job in jobs)


def test_the_profile_chooses_the_scale(tmp_path):
    jobs = planned_jobs(["p1_gates"], Settings("slurm"), folder=tmp_path)
    assert any("results/gpu/" in path for job in jobs for path in job.outputs)


def test_a_target_that_no_rule_makes_is_refused_with_its_name(tmp_path):
    with pytest.raises(BadPlan, match=r"p1_fig33\.png"):
        planned_jobs(["results/p1_fig33.png"], folder=tmp_path)
