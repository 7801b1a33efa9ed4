"""Differences to PEFT by block, and where they enter (P1-3.7)."""

from ember.figures.p1_lora_blocks import draw
from ember.figures.style import save
from ember.operations import job
from ember.records.schemas.lora import LORA_BLOCKS, LORA_SPOT
from ember.records.tables import read_table

with job.start(snakemake) as run:
    drawing, caption = draw(
        read_table(run.input.blocks, LORA_BLOCKS),
        read_table(run.input.spot, LORA_SPOT),
        run.params.scale,
    )
    save(drawing, run.stem, caption, run.provenance())
