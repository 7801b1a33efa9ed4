"""Medians of decoding against the memory's limit (P1-1, P1-4)."""

from ember.operations import job
from ember.operations.publish import publish
from ember.studies.p1.roofline.measure import summarise_roofline
from ember.studies.p1.roofline.tables import ROOFLINE

with job.start(snakemake) as run:
    publish(run, summarise_roofline(run.input.decode), ROOFLINE)
