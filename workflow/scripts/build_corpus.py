"""Collect a corpus, split by document and hashed."""

from ember.experiments.corpus import build_corpus
from ember.operations import job
from ember.records.schemas.corpus import CORPUS

with job.start(snakemake) as run:
    run.table(build_corpus(run.params.settings, seed=run.params.seed), CORPUS)
