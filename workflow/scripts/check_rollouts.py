"""The same rollout again, in other company, and by other means (P1-4.3)."""

from ember.experiments.rollout_consistency import check_consistency
from ember.operations import job
from ember.operations.publish import publish
from ember.records.schemas.rollout_core import ROLLOUT_CONSISTENCY

with job.start(snakemake) as run:
    rows = check_consistency(
        model=run.input.model,
        workload=run.input.workload,
        **run.params.settings,
        **run.params.runtime,
    )
    publish(run, rows, ROLLOUT_CONSISTENCY)
