"""Prefill restarted at a layer, and the correction of stale KV, timed (P1-5, P1-8)."""

from ember.operations import job
from ember.studies.p1.restart.measure import sweep_restart
from ember.studies.p1.restart.tables import RESTART_SWEEP

with job.start(snakemake) as run:
    rows = sweep_restart(
        model=run.input.model,
        workload=run.input.workload,
        contexts=run.params.contexts,
        policies=run.params.policies,
        **run.params.settings,
        **run.params.runtime,
    )
    run.table(rows, RESTART_SWEEP)
