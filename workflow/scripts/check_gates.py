"""All gates in one table; one that does not hold stops every measurement (P1-0)."""

from ember.operations import job
from ember.studies.p1.gates.summary import check_gates
from ember.studies.p1.gates.tables import GATES

with job.start(snakemake) as run:
    run.table(check_gates(run.input.gates), GATES)
