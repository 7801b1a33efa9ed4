"""Differences to PEFT by layer (P1-3.6)."""

from ember.figures.p1_lora_layers import draw
from ember.figures.style import save
from ember.operations import job
from ember.records.schemas.lora import LORA_FREEZE, LORA_LAYERS
from ember.records.tables import read_table

with job.start(snakemake) as run:
    drawing, caption = draw(
        read_table(run.input.layers, LORA_LAYERS),
        read_table(run.input.freeze, LORA_FREEZE),
        run.params.scale,
    )
    save(drawing, run.stem, caption, run.provenance())
