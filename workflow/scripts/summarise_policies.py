"""Policies side by side: recompute ratio, cost and savings (P1-5.3, P1-6.1)."""

from ember.operations import job
from ember.operations.publish import publish
from ember.records.tables import read_table
from ember.studies.p1.policies.summary import summarise_policies
from ember.studies.p1.policies.tables import CUMULATIVE_COST, POLICY_ROUNDS
from ember.studies.p1.policies.tables_summary import POLICY_SUMMARY

with job.start(snakemake) as run:
    rows = summarise_policies(
        read_table(run.input.rounds, POLICY_ROUNDS), read_table(run.input.cost, CUMULATIVE_COST)
    )
    publish(run, rows, POLICY_SUMMARY)
