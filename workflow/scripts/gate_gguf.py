"""Gate: the same weights as GGUF, hashed (P1-0.3)."""

from ember.operations import job
from ember.studies.p1.gates.gguf import check_gguf_export
from ember.studies.p1.gates.tables import GATES

with job.start(snakemake) as run:
    rows = check_gguf_export(run.input.model, run.output.gguf)
    run.stamp(run.output.gguf)
    run.table(rows, GATES, run.output.gate)
