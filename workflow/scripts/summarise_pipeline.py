"""Splits measured and predicted, and the solver's best one (P1-1.2)."""

from ember.operations import job
from ember.operations.publish import publish
from ember.studies.p1.pipeline.summary import summarise_pipeline
from ember.studies.p1.pipeline.tables import PIPELINE

with job.start(snakemake) as run:
    anchor = run.input.get("anchor") or None
    rows = summarise_pipeline(run.input.runs, run.input.costs, anchor)
    publish(run, rows, PIPELINE)
