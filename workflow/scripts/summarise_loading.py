"""Median load of every loader beside reading the bytes alone (P1-1.4)."""

from ember.operations import job
from ember.operations.publish import publish
from ember.studies.p1.loading.summary import summarise_loading
from ember.studies.p1.loading.tables import LOADING

with job.start(snakemake) as run:
    publish(run, summarise_loading(run.input.runs), LOADING)
