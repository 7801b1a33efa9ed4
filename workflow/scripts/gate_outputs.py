"""Gate: results can be written, whole or not at all (P1-0.4)."""

from pathlib import Path

from ember.operations import job
from ember.studies.p1.gates.outputs import check_outputs
from ember.studies.p1.gates.tables import GATES

with job.start(snakemake) as run:
    run.table(check_outputs(Path(run.output.gate).parent), GATES)
