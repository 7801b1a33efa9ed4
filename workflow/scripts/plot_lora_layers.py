"""Differences to PEFT by layer (P1-3.6)."""

from ember.operations import job
from ember.records.tables import read_table
from ember.studies.p1.lora_alignment.figure_layers import draw
from ember.studies.p1.lora_alignment.tables import LORA_FREEZE, LORA_LAYERS
from ember.studies.style import save

with job.start(snakemake) as run:
    drawing, caption = draw(
        read_table(run.input.layers, LORA_LAYERS),
        read_table(run.input.freeze, LORA_FREEZE),
        run.params.scale,
    )
    save(drawing, run.stem, caption, run.provenance())
