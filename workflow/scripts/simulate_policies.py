"""What each policy recomputes and reuses, round by round (P1-5.3)."""

from ember.operations import job
from ember.studies.p1.policies.measure import simulate_policies
from ember.studies.p1.policies.tables import POLICY_ROUNDS

with job.start(snakemake) as run:
    rows = simulate_policies(
        model=run.input.model, policies=run.params.policies, rounds=run.params.rounds
    )
    run.table(rows, POLICY_ROUNDS)
