"""Every job behind the products: its time, and what of it was overhead."""

from ember.experiments.job_cost import collect_jobs
from ember.operations import job
from ember.operations.publish import publish
from ember.records.schemas.workflow_cost import WORKFLOW_JOBS

with job.start(snakemake) as run:
    publish(run, collect_jobs(run.input, run.params.stages), WORKFLOW_JOBS)
