"""A step of a study whose table is a product: Parquet, and the forms people paste."""

from ember.operations import job
from ember.operations.publish import publish
from ember.studies.steps import arguments, find

with job.start(snakemake) as run:
    step = find(run.params.step)
    publish(run, step(**arguments(step, run)), *step.makes)
