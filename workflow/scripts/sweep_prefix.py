"""Prefill with and without the prefix cache, paired by document (P1-2.3)."""

from ember.operations import job
from ember.studies.p1.prefix.measure import sweep_prefix
from ember.studies.p1.prefix.tables import PREFIX_SWEEP

with job.start(snakemake) as run:
    rows = sweep_prefix(
        model=run.input.model,
        workload=run.input.workload,
        shard=run.params.shard,
        **run.params.settings,
        **run.params.runtime,
    )
    run.table(rows, PREFIX_SWEEP)
