"""Switching adapters (P1-3.3)."""

from ember.figures.p1_lora_latency import draw
from ember.figures.style import save
from ember.operations import job
from ember.records.schemas.lora import LORA_EXACT, LORA_LATENCY_SUMMARY
from ember.records.tables import read_table

with job.start(snakemake) as run:
    drawing, caption = draw(
        read_table(run.input.latency, LORA_LATENCY_SUMMARY),
        read_table(run.input.exact, LORA_EXACT),
        run.params.scale,
    )
    save(drawing, run.stem, caption, run.provenance())
