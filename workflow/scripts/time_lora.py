"""Adapters applied, replaced and rolled back, beside PEFT (P1-3.3)."""

from ember.operations import job
from ember.studies.p1.lora_alignment.tables import LORA_EXACT, LORA_LATENCY
from ember.studies.p1.lora_latency.measure import time_adapters

with job.start(snakemake) as run:
    latency, exact = time_adapters(
        model=run.input.model, settings=run.params.settings, **run.params.runtime
    )
    run.table(latency, LORA_LATENCY, run.output.latency)
    run.table(exact, LORA_EXACT, run.output.exact)
