"""Switching adapters (P1-3.3)."""

from ember.operations import job
from ember.records.tables import read_table
from ember.studies.p1.lora_alignment.tables import LORA_EXACT, LORA_LATENCY_SUMMARY
from ember.studies.p1.lora_latency.figure import draw
from ember.studies.style import save

with job.start(snakemake) as run:
    drawing, caption = draw(
        read_table(run.input.latency, LORA_LATENCY_SUMMARY),
        read_table(run.input.exact, LORA_EXACT),
        run.params.scale,
    )
    save(drawing, run.stem, caption, run.provenance())
