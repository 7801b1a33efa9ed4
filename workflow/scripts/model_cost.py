"""Cumulative cost of every policy, from the measured tables alone (P1-6.1)."""

from ember.operations import job
from ember.studies.p1.policies.cost import model_cost
from ember.studies.p1.policies.tables import CUMULATIVE_COST

with job.start(snakemake) as run:
    rows = model_cost(
        profile=run.input.profile,
        prefix=run.input.prefix,
        restart=run.input.restart,
        latency=run.input.latency,
        policy_rounds=run.input.rounds,
        rounds=run.params.rounds,
        seed=run.params.seed,
    )
    run.table(rows, CUMULATIVE_COST)
