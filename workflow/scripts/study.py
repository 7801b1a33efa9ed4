"""A step of a study: its rows become the tables that it says it makes."""

from pathlib import Path

from ember.operations import job
from ember.studies.steps import arguments, find

if __name__ == "__main__":  # pipeline stages are processes that import this file again
    with job.start(snakemake) as run:
        step = find(run.params.step)
        made = step(**arguments(step, run))
        tables = [path for path in run.output if path.endswith(".parquet")]
        for folder in filter(lambda path: Path(path).is_dir(), run.output):
            run.stamp(folder)
        if len(step.makes) == 1:
            made = [made]
        for path, schema, rows in zip(tables, step.makes, made if tables else [], strict=True):
            run.table(rows, schema, path)
        if state := run.params.get("state"):  # of a training, needed until its tables stand
            Path(state).unlink(missing_ok=True)
