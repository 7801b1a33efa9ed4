"""For every item of the paper: ready, or what is missing (P1-11.1)."""

from pathlib import Path

from ember.experiments.readiness import assess
from ember.operations import job
from ember.operations.publish import publish
from ember.records.schemas.decisions import READINESS

with job.start(snakemake) as run:
    publish(run, assess(Path(run.output[0]).parent, scale=run.params.scale), READINESS)
