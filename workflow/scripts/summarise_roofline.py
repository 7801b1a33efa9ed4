"""Medians of decoding against the memory's limit (P1-1, P1-4)."""

from ember.experiments.decode_roofline import summarise_roofline
from ember.operations import job
from ember.operations.publish import publish
from ember.records.schemas.roofline import ROOFLINE

with job.start(snakemake) as run:
    publish(run, summarise_roofline(run.input.decode), ROOFLINE)
