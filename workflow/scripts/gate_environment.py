"""Gate: the environment is recorded and has the device it needs (P1-0.5)."""

from ember.experiments.gates.environment import check_environment
from ember.operations import job
from ember.records.schemas.gates import GATES

with job.start(snakemake) as run:
    run.table(check_environment(**run.params.runtime), GATES)
