"""Every architecture beside Transformers: logits, keys, values and greedy tokens."""

from ember.operations import job
from ember.operations.publish import publish
from ember.studies.p1.architectures.measure import check_architectures
from ember.studies.p1.architectures.tables import ARCHITECTURES

with job.start(snakemake) as run:
    publish(run, check_architectures(**run.params.settings, seed=run.params.seed), ARCHITECTURES)
