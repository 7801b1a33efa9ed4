"""Final tables: Parquet, and the forms people paste (CSV, Markdown, LaTeX) beside it."""

from ember.operations.job import Job
from ember.records.render import render
from ember.records.schema import Schema
from ember.records.tables import read_rows, write_table


def publish(run: Job, rows, schema: Schema) -> None:
    """Write the final table whose Parquet file is the job's first output."""
    provenance = run.provenance()
    path = write_table(run.output[0], rows, schema, provenance)
    render(read_rows(path, schema), schema, run.stem, provenance)
