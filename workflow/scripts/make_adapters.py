"""Adapters in PEFT's format: by PEFT, drawn, trained (P1-3.4)."""

from pathlib import Path

from ember.operations import job
from ember.records.atomic import atomic_dir
from ember.studies.p1.lora_adapters.make import make_adapters

with job.start(snakemake) as run:
    with atomic_dir(Path(run.output.adapters)) as folder:
        make_adapters(
            model=run.input.model,
            workload=run.input.workload,
            folder=folder,
            settings=run.params.settings,
            **run.params.runtime,
        )
    run.stamp(run.output.adapters)
