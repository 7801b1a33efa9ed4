"""Loading times, and a process's way to its first token (P1-1.4)."""

from ember.figures.p1_loading import draw
from ember.figures.style import save
from ember.operations import job
from ember.records.schemas.loading import FIRST_TOKEN, LOADING
from ember.records.tables import read_table

with job.start(snakemake) as run:
    drawing, caption = draw(
        read_table(run.input.loading, LOADING),
        read_table(run.input.first_token, FIRST_TOKEN),
        run.params.scale,
    )
    save(drawing, run.stem, caption, run.provenance())
