"""Train a model; resumes where an earlier run was stopped."""

from ember.experiments import job
from ember.training.lm import train

with job.start(snakemake) as run:
    train()
