"""A rollout's phases on two stages, over context x generation (P1-1.1)."""

from ember.operations import job
from ember.studies.p1.pipeline.measure import profile_stages
from ember.studies.p1.profile.tables import ROLLOUT_PROFILE

with job.start(snakemake) as run:
    rows = profile_stages(
        model=run.input.model,
        workload=run.input.workload,
        **run.params.settings,
        **run.params.runtime,
    )
    run.table(rows, ROLLOUT_PROFILE)
