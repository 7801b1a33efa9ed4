"""For every item of the paper: ready, or what is missing (P1-11.1)."""

from pathlib import Path

from ember.operations import job
from ember.operations.publish import publish
from ember.studies.paper.decisions.tables import READINESS
from ember.studies.paper.readiness.summary import assess

with job.start(snakemake) as run:
    publish(run, assess(Path(run.output[0]).parent, scale=run.params.scale), READINESS)
