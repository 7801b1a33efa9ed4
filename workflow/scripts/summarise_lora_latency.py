"""Switching adapters, against the memory's limit and PEFT (P1-3.3)."""

from ember.experiments.lora_latency import summarise_latency
from ember.operations import job
from ember.operations.publish import publish
from ember.records.schemas.lora import LORA_LATENCY, LORA_LATENCY_SUMMARY
from ember.records.tables import read_rows

with job.start(snakemake) as run:
    publish(
        run, summarise_latency(read_rows(run.input.latency, LORA_LATENCY)), LORA_LATENCY_SUMMARY
    )
