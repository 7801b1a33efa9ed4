"""Median, spread and prefill share of every rollout point (P1-1.1)."""

from ember.experiments.rollout_profile import prefill_share
from ember.operations import job
from ember.operations.publish import publish
from ember.records.schemas.rollout import PREFILL_SHARE

with job.start(snakemake) as run:
    publish(run, prefill_share(run.input.profile, run.input.stages), PREFILL_SHARE)
