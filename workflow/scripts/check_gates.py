"""All gates in one table; one that does not hold stops every measurement (P1-0)."""

from ember.experiments.gates.check import check_gates
from ember.operations import job
from ember.records.schemas.gates import GATES

with job.start(snakemake) as run:
    run.table(check_gates(run.input.gates), GATES)
