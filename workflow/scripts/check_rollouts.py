"""The same rollout again, in other company, and by other means (P1-4.3)."""

from ember.operations import job
from ember.operations.publish import publish
from ember.studies.p1.consistency.measure import check_consistency
from ember.studies.p1.rollout.tables import ROLLOUT_CONSISTENCY

with job.start(snakemake) as run:
    rows = check_consistency(
        model=run.input.model,
        workload=run.input.workload,
        **run.params.settings,
        **run.params.runtime,
    )
    publish(run, rows, ROLLOUT_CONSISTENCY)
