"""Speed and share of the limit of every rollout point (P1-4)."""

from ember.operations import job
from ember.operations.publish import publish
from ember.studies.p1.rollout.measure import summarise_rollouts
from ember.studies.p1.rollout.tables import ROLLOUT_SPEED

with job.start(snakemake) as run:
    publish(run, summarise_rollouts(run.input.throughput), ROLLOUT_SPEED)
