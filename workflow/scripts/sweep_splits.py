"""Two stages: every split, with and without overlap (P1-1.2)."""

from ember.operations import job
from ember.studies.p1.pipeline.measure import sweep_splits
from ember.studies.p1.pipeline.tables import PIPELINE_EVENTS, PIPELINE_RUNS

with job.start(snakemake) as run:
    runs, events = sweep_splits(
        model=run.input.model,
        workload=run.input.workload,
        **run.params.settings,
        **run.params.runtime,
    )
    run.table(runs, PIPELINE_RUNS, run.output.runs)
    run.table(events, PIPELINE_EVENTS, run.output.events)
