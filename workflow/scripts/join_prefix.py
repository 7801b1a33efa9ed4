"""All shards of the prefix sweep in one table, every document once."""

from ember.operations import job
from ember.studies.p1.prefix.measure import join_sweep
from ember.studies.p1.prefix.tables import PREFIX_SWEEP

with job.start(snakemake) as run:
    run.table(join_sweep(run.input.shards, run.params.documents), PREFIX_SWEEP)
