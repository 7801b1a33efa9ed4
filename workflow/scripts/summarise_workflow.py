"""Time by rule, and the share spent on starting, importing and loading."""

from ember.experiments.job_cost import cost_by_rule
from ember.operations import job
from ember.operations.publish import publish
from ember.records.schemas.workflow_cost import WORKFLOW_COST, WORKFLOW_JOBS, WORKFLOW_STEPS
from ember.records.tables import read_rows

with job.start(snakemake) as run:
    rows = cost_by_rule(
        read_rows(run.input.jobs, WORKFLOW_JOBS),
        read_rows(run.input.steps, WORKFLOW_STEPS),
        run.params.goal,
    )
    publish(run, rows, WORKFLOW_COST)
