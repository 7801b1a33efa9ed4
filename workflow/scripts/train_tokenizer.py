"""Train the byte-level BPE tokenizer on the training splits."""

from pathlib import Path

from ember.operations import job
from ember.records.tables import read_rows
from ember.studies.shared.corpora.tables import CORPUS
from ember.studies.shared.tokenizer.make import train_tokenizer

with job.start(snakemake) as run:
    corpora = [read_rows(path, CORPUS) for path in run.input.corpora]
    train_tokenizer(corpora, run.params.settings, out=Path(run.output.tokenizer))
    run.stamp(run.output.tokenizer)
