"""Take a model from its source: random weights of a true shape, a local directory, or the hub."""

from ember.operations import job
from ember.studies.shared.models.fetch import fetch_model

with job.start(snakemake) as run:
    fetch_model(run.params.settings, run.output.model, seed=run.params.seed)
    run.stamp(run.output.model)
