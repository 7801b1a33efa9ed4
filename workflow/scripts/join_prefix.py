"""All shards of the prefix sweep in one table, every document once."""

from ember.experiments.prefix_sweep import join_sweep
from ember.operations import job
from ember.records.schemas.prefix import PREFIX_SWEEP

with job.start(snakemake) as run:
    run.table(join_sweep(run.input.shards, run.params.documents), PREFIX_SWEEP)
