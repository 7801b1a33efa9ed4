"""The worst difference to PEFT of each adapter and number format (P1-3.4)."""

from ember.operations import job
from ember.operations.publish import publish
from ember.records.tables import read_rows
from ember.studies.p1.lora_alignment.measure import summarise_alignment
from ember.studies.p1.lora_alignment.tables import LORA_ALIGNMENT, LORA_CASES

with job.start(snakemake) as run:
    rows = summarise_alignment(
        read_rows(run.input.cases, LORA_CASES),
        seed=run.params.seed,
        resamples=run.params.resamples,
    )
    publish(run, rows, LORA_ALIGNMENT)
