"""The worst difference to PEFT of each adapter and number format (P1-3.4)."""

from ember.experiments.lora_alignment import summarise_alignment
from ember.operations import job
from ember.operations.publish import publish
from ember.records.schemas.lora import LORA_ALIGNMENT, LORA_CASES
from ember.records.tables import read_rows

with job.start(snakemake) as run:
    rows = summarise_alignment(
        read_rows(run.input.cases, LORA_CASES),
        seed=run.params.seed,
        resamples=run.params.resamples,
    )
    publish(run, rows, LORA_ALIGNMENT)
