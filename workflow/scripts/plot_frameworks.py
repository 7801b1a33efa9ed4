"""Decode speed of every framework beside the read bandwidth (P1-1.3)."""

from ember.figures.p1_frameworks import draw
from ember.figures.style import save
from ember.operations import job
from ember.records.schemas.frameworks import FRAMEWORKS
from ember.records.tables import read_table

with job.start(snakemake) as run:
    drawing, caption = draw(read_table(run.input.frameworks, FRAMEWORKS), run.params.scale)
    save(drawing, run.stem, caption, run.provenance())
