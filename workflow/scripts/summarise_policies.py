"""Policies side by side: recompute ratio, cost and savings (P1-5.3, P1-6.1)."""

from ember.experiments.policy_summary import summarise_policies
from ember.operations import job
from ember.operations.publish import publish
from ember.records.schemas.policies import CUMULATIVE_COST, POLICY_ROUNDS
from ember.records.schemas.policy_summary import POLICY_SUMMARY
from ember.records.tables import read_table

with job.start(snakemake) as run:
    rows = summarise_policies(
        read_table(run.input.rounds, POLICY_ROUNDS), read_table(run.input.cost, CUMULATIVE_COST)
    )
    publish(run, rows, POLICY_SUMMARY)
