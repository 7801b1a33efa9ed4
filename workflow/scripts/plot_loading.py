"""Loading times, and a process's way to its first token (P1-1.4)."""

from ember.operations import job
from ember.records.tables import read_table
from ember.studies.p1.loading.figure import draw
from ember.studies.p1.loading.tables import FIRST_TOKEN, LOADING
from ember.studies.style import save

with job.start(snakemake) as run:
    drawing, caption = draw(
        read_table(run.input.loading, LOADING),
        read_table(run.input.first_token, FIRST_TOKEN),
        run.params.scale,
    )
    save(drawing, run.stem, caption, run.provenance())
