"""Time by rule, and the share spent on starting, importing and loading."""

from ember.operations import job
from ember.operations.publish import publish
from ember.records.tables import read_rows
from ember.studies.workflow.cost.summary import cost_by_rule
from ember.studies.workflow.cost.tables import WORKFLOW_COST, WORKFLOW_JOBS, WORKFLOW_STEPS

with job.start(snakemake) as run:
    rows = cost_by_rule(
        read_rows(run.input.jobs, WORKFLOW_JOBS),
        read_rows(run.input.steps, WORKFLOW_STEPS),
        run.params.goal,
    )
    publish(run, rows, WORKFLOW_COST)
