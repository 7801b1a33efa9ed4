"""Gate: the environment is recorded and has the device it needs (P1-0.5)."""

from ember.operations import job
from ember.studies.p1.gates.environment import check_environment
from ember.studies.p1.gates.tables import GATES

with job.start(snakemake) as run:
    run.table(check_environment(**run.params.runtime), GATES)
