"""Prompts that share a long instruction prefix, at controlled lengths (P1-2.2)."""

from ember.operations import job
from ember.studies.p1.workload.make import make_workload
from ember.studies.p1.workload.tables import WORKLOAD

with job.start(snakemake) as run:
    rows = make_workload(
        model=run.input.model,
        corpus=run.input.get("corpus"),
        documents=run.params.documents,
        tokens=run.params.tokens,
        seed=run.params.seed,
    )
    run.table(rows, WORKLOAD)
