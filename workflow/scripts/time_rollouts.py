"""Continuous batching over prompts, candidates and rows (P1-4)."""

from ember.operations import job
from ember.studies.p1.rollout.measure import measure_rollouts
from ember.studies.p1.rollout.tables import ROLLOUT_THROUGHPUT

with job.start(snakemake) as run:
    rows = measure_rollouts(
        model=run.input.model,
        workload=run.input.workload,
        **run.params.settings,
        **run.params.runtime,
    )
    run.table(rows, ROLLOUT_THROUGHPUT)
