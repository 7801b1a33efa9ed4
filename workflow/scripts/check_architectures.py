"""Every architecture beside Transformers: logits, keys, values and greedy tokens."""

from ember.experiments.architectures import check_architectures
from ember.operations import job
from ember.operations.publish import publish
from ember.records.schemas.architectures import ARCHITECTURES

with job.start(snakemake) as run:
    publish(run, check_architectures(**run.params.settings, seed=run.params.seed), ARCHITECTURES)
