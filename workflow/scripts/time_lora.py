"""Adapters applied, replaced and rolled back, beside PEFT (P1-3.3)."""

from ember.experiments.lora_latency import time_adapters
from ember.operations import job
from ember.records.schemas.lora import LORA_EXACT, LORA_LATENCY

with job.start(snakemake) as run:
    latency, exact = time_adapters(
        model=run.input.model, settings=run.params.settings, **run.params.runtime
    )
    run.table(latency, LORA_LATENCY, run.output.latency)
    run.table(exact, LORA_EXACT, run.output.exact)
