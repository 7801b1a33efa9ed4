"""Tokens per second by split, measured and predicted (P1-1.2)."""

from ember.figures.p1_pipeline_splits import draw
from ember.figures.style import save
from ember.operations import job
from ember.records.schemas.pipeline import PIPELINE
from ember.records.tables import read_table

with job.start(snakemake) as run:
    drawing, caption = draw(read_table(run.input.pipeline, PIPELINE), run.params.scale)
    save(drawing, run.stem, caption, run.provenance())
