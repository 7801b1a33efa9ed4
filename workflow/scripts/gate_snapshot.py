"""Gate: the main model's snapshot is fixed and hashed (P1-0.2)."""

from ember.experiments.gates.snapshot import check_snapshot
from ember.operations import job
from ember.records.schemas.gates import GATES, MODEL_SNAPSHOT

with job.start(snakemake) as run:
    gate, files = check_snapshot(run.input.model, name=run.params.name)
    run.table(files, MODEL_SNAPSHOT, run.output.snapshot)
    run.table(gate, GATES, run.output.gate)
