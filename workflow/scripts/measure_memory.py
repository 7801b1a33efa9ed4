"""Weights, KV, activations, gradients and optimizer: predicted and measured (P1-1.5)."""

from ember.operations import job
from ember.operations.publish import publish
from ember.studies.p1.memory.measure import memory_budget
from ember.studies.p1.memory.tables import MEMORY_BUDGET

with job.start(snakemake) as run:
    rows = memory_budget(model=run.input.model, **run.params.settings, **run.params.runtime)
    publish(run, rows, MEMORY_BUDGET)
