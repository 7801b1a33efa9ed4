"""The engine and Transformers' generate, alternating in one process."""

from ember.operations import job
from ember.operations.publish import publish
from ember.studies.p1.speed.measure import compare_engines
from ember.studies.p1.speed.tables import ENGINE_SPEED

with job.start(snakemake) as run:
    rows = compare_engines(
        model=run.input.model,
        workload=run.input.workload,
        **run.params.settings,
        **run.params.runtime,
    )
    publish(run, rows, ENGINE_SPEED)
