"""Differences to PEFT by block, and where they enter (P1-3.7)."""

from ember.operations import job
from ember.records.tables import read_table
from ember.studies.p1.lora_alignment.figure import draw
from ember.studies.p1.lora_alignment.tables import LORA_BLOCKS, LORA_SPOT
from ember.studies.style import save

with job.start(snakemake) as run:
    drawing, caption = draw(
        read_table(run.input.blocks, LORA_BLOCKS),
        read_table(run.input.spot, LORA_SPOT),
        run.params.scale,
    )
    save(drawing, run.stem, caption, run.provenance())
