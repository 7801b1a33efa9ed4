"""Gate: the engine runs on one device and as two stages, with equal logits (P1-0.1)."""

from ember.operations import job
from ember.studies.p1.gates.smoke import check_smoke
from ember.studies.p1.gates.tables import GATES

if __name__ == "__main__":  # the stages are processes of their own and import this file again
    with job.start(snakemake) as run:
        run.table(check_smoke(run.input.model, **run.params.settings, **run.params.runtime), GATES)
