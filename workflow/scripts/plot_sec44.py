"""Sec 4.4: prefill saved by prefix reuse (P1-2.3)."""

from ember.operations import job
from ember.records.tables import read_table
from ember.studies.p1.prefix.figure import draw
from ember.studies.p1.prefix.tables import PREFIX_SAVINGS
from ember.studies.style import save

with job.start(snakemake) as run:
    drawing, caption = draw(read_table(run.input.savings, PREFIX_SAVINGS), run.params.scale)
    save(drawing, run.stem, caption, run.provenance())
