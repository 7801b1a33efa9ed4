"""Continuous batching over prompts, candidates and rows (P1-4)."""

from ember.experiments.rollout_throughput import measure_rollouts
from ember.operations import job
from ember.records.schemas.rollout_core import ROLLOUT_THROUGHPUT

with job.start(snakemake) as run:
    rows = measure_rollouts(
        model=run.input.model,
        workload=run.input.workload,
        **run.params.settings,
        **run.params.runtime,
    )
    run.table(rows, ROLLOUT_THROUGHPUT)
