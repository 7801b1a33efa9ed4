"""Savings with intervals, beside what the operation count predicts (P1-2.3)."""

from ember.operations import job
from ember.operations.publish import publish
from ember.studies.p1.prefix.measure import prefix_savings
from ember.studies.p1.prefix.tables import PREFIX_SAVINGS

with job.start(snakemake) as run:
    rows = prefix_savings(
        run.input.sweep,
        model=run.input.model,
        tolerance=run.params.tolerance,
        seed=run.params.seed,
    )
    publish(run, rows, PREFIX_SAVINGS)
