"""Decode speed of every framework beside the read bandwidth (P1-1.3)."""

from ember.operations import job
from ember.records.tables import read_table
from ember.studies.p1.frameworks.figure import draw
from ember.studies.p1.frameworks.tables import FRAMEWORKS
from ember.studies.style import save

with job.start(snakemake) as run:
    drawing, caption = draw(read_table(run.input.frameworks, FRAMEWORKS), run.params.scale)
    save(drawing, run.stem, caption, run.provenance())
