"""Gate: the engine runs on one device and as two stages, with equal logits (P1-0.1)."""

from ember.experiments.gates.smoke import check_smoke
from ember.operations import job
from ember.records.schemas.gates import GATES

if __name__ == "__main__":  # the stages are processes of their own and import this file again
    with job.start(snakemake) as run:
        run.table(check_smoke(run.input.model, **run.params.settings, **run.params.runtime), GATES)
