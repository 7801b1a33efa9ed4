"""Time what a user types: dry run, no-op rerun, an empty job."""

from pathlib import Path

from ember.operations import job
from ember.records.provenance import source_root
from ember.studies.workflow.cost.measure import time_steps
from ember.studies.workflow.cost.tables import WORKFLOW_STEPS

with job.start(snakemake) as run:
    rows = time_steps(
        source_root(),
        Path.cwd(),
        list(run.input),
        run.params.given,
        repeats=run.params.settings["repeats"],
        jobs=run.params.settings["empty_jobs"],
    )
    run.table(rows, WORKFLOW_STEPS)
