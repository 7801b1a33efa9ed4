"""Switching adapters, against the memory's limit and PEFT (P1-3.3)."""

from ember.operations import job
from ember.operations.publish import publish
from ember.records.tables import read_rows
from ember.studies.p1.lora_alignment.tables import LORA_LATENCY, LORA_LATENCY_SUMMARY
from ember.studies.p1.lora_latency.measure import summarise_latency

with job.start(snakemake) as run:
    publish(
        run, summarise_latency(read_rows(run.input.latency, LORA_LATENCY)), LORA_LATENCY_SUMMARY
    )
