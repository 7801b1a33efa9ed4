"""Speed and share of the limit of every rollout point (P1-4)."""

from ember.experiments import job
from ember.experiments.publish import publish
from ember.experiments.rollout_throughput import summarise_rollouts
from ember.records.schemas.rollout_core import ROLLOUT_SPEED

with job.start(snakemake) as run:
    publish(run, summarise_rollouts(run.input.throughput), ROLLOUT_SPEED)
