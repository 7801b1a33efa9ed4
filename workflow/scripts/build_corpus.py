"""Collect a corpus, split by document and hashed."""

from ember.operations import job
from ember.studies.shared.corpora.make import build_corpus
from ember.studies.shared.corpora.tables import CORPUS

with job.start(snakemake) as run:
    run.table(build_corpus(run.params.settings, seed=run.params.seed), CORPUS)
