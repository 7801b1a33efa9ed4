"""Gate: the main model's snapshot is fixed and hashed (P1-0.2)."""

from ember.operations import job
from ember.studies.p1.gates.snapshot import check_snapshot
from ember.studies.p1.gates.tables import GATES, MODEL_SNAPSHOT

with job.start(snakemake) as run:
    gate, files = check_snapshot(run.input.model, name=run.params.name)
    run.table(files, MODEL_SNAPSHOT, run.output.snapshot)
    run.table(gate, GATES, run.output.gate)
