"""This engine and other frameworks in turns, each in its own process (P1-1.3)."""

from ember.operations import job
from ember.studies.p1.frameworks.measure import compare_frameworks
from ember.studies.p1.frameworks.tables import FRAMEWORK_RUNS

with job.start(snakemake) as run:
    settings = {key: value for key, value in run.params.settings.items() if key != "mem_mb"}
    rows = compare_frameworks(
        model=run.input.model,
        workload=run.input.workload,
        gguf=run.input.gguf,
        threads=run.threads,
        **settings,
        **run.params.runtime,
    )
    run.table(rows, FRAMEWORK_RUNS)
