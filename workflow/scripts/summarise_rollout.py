"""Median, spread and prefill share of every rollout point (P1-1.1)."""

from ember.operations import job
from ember.operations.publish import publish
from ember.studies.p1.profile.measure import prefill_share
from ember.studies.p1.profile.tables import PREFILL_SHARE

with job.start(snakemake) as run:
    publish(run, prefill_share(run.input.profile, run.input.stages), PREFILL_SHARE)
