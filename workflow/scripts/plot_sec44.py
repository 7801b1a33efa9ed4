"""Sec 4.4: prefill saved by prefix reuse (P1-2.3)."""

from ember.figures.p1_sec44 import draw
from ember.figures.style import save
from ember.operations import job
from ember.records.schemas.prefix import PREFIX_SAVINGS
from ember.records.tables import read_table

with job.start(snakemake) as run:
    drawing, caption = draw(read_table(run.input.savings, PREFIX_SAVINGS), run.params.scale)
    save(drawing, run.stem, caption, run.provenance())
