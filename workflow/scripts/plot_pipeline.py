"""Tokens per second by split, measured and predicted (P1-1.2)."""

from ember.operations import job
from ember.records.tables import read_table
from ember.studies.p1.pipeline.figure import draw
from ember.studies.p1.pipeline.tables import PIPELINE
from ember.studies.style import save

with job.start(snakemake) as run:
    drawing, caption = draw(read_table(run.input.pipeline, PIPELINE), run.params.scale)
    save(drawing, run.stem, caption, run.provenance())
