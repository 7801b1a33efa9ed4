"""Gate: results can be written, whole or not at all (P1-0.4)."""

from pathlib import Path

from ember.experiments.gates.outputs import check_outputs
from ember.operations import job
from ember.records.schemas.gates import GATES

with job.start(snakemake) as run:
    run.table(check_outputs(Path(run.output.gate).parent), GATES)
