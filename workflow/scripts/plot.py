"""A figure of a study: drawn from its tables, written as PNG, PDF and caption."""

from ember.operations import job
from ember.records.tables import read_table
from ember.studies.steps import arguments, find
from ember.studies.style import save, small_print

with job.start(snakemake) as run:
    draw = find(run.params.step)
    tables = {name: read_table(run.input[name], schema) for name, schema in draw.reads.items()}
    drawing, caption, *drawn = draw(**arguments(draw, run) | tables)
    words = small_print(drawn or tables.values(), run.params.scale) if tables else ""
    save(drawing, run.stem, caption, run.provenance(), words)
