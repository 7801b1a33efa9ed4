"""Cumulative cost of every policy, from the measured tables alone (P1-6.1)."""

from ember.experiments.cumulative_cost import model_cost
from ember.operations import job
from ember.records.schemas.policies import CUMULATIVE_COST

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
