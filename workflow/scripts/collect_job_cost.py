"""Every job that a product comes from: its time, and what of it was overhead."""

from ember.operations import job
from ember.operations.publish import publish
from ember.studies.workflow.cost.summary import collect_jobs
from ember.studies.workflow.cost.tables import WORKFLOW_JOBS

with job.start(snakemake) as run:
    publish(run, collect_jobs(run.input, run.params.stages), WORKFLOW_JOBS)
