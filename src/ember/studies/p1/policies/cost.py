"""P1-6.1: cumulative cost of every policy, modelled from the measured tables (Fig 3)."""

import logging
from collections.abc import Mapping

from ember.policies.cost import Measured, MissingMeasurement, Point, Prices, policy_cost
from ember.studies.p1.lora_latency.tables import LORA_LATENCY
from ember.studies.p1.policies.tables import CUMULATIVE_COST, POLICY_ROUNDS
from ember.studies.p1.prefix.tables import PREFIX_SWEEP
from ember.studies.p1.profile.tables import ROLLOUT_PROFILE
from ember.studies.p1.restart.tables import RESTART_SWEEP
from ember.studies.rows import frame
from ember.studies.steps import makes

log = logging.getLogger(__name__)


@makes(CUMULATIVE_COST)
def model_cost(
    *, profile, prefix, restart, latency, policy_rounds, rounds: Mapping, seed: int
) -> list[dict]:
    """Rows of CUMULATIVE_COST from five tables: their paths, data frames or rows.

    profile: ROLLOUT_PROFILE. prefix: PREFIX_SWEEP. restart: RESTART_SWEEP. latency: LORA_LATENCY.
    policy_rounds: POLICY_ROUNDS. rounds: prompts, candidates, points and bootstrap (resamples of
    the intervals).
    Raises MissingMeasurement naming table, point and rule where a table lacks what a policy needs.
    """
    schemas = (ROLLOUT_PROFILE, PREFIX_SWEEP, RESTART_SWEEP, LORA_LATENCY)
    tables = list(map(frame, (profile, prefix, restart, latency), schemas))
    simulated = frame(policy_rounds, POLICY_ROUNDS)
    machine = _machine(*tables)
    measured = Measured(*tables, num_layers=int(simulated["num_layers"].iloc[0]))
    rollouts = rounds["prompts"] * rounds["candidates"]
    rows = []
    for item in rounds["points"]:
        point = Point(item["context"], item["generation"], item["prefix"])
        prices = Prices(measured, point, rounds["bootstrap"], seed)
        here = simulated[simulated["point"] == str(point)]
        for (sharing, policy), group in here.groupby(["sharing", "policy"], sort=False):
            history = group.sort_values("round").to_dict("records")
            labels = {
                "point": str(point),
                "context": point.context,
                "generation": point.generation,
                "policy": policy,
                "label": history[0]["label"],
                "sharing": sharing,
            }
            cost = policy_cost(prices, history, rollouts=rollouts)
            rows += [labels | row | machine | {"evidence": "modelled"} for row in cost]
            last = cost[-1]
            saved, low, high = (
                100 * last[key] for key in ("savings_vs_naive", "savings_low", "savings_high")
            )
            took = f"{last['cumulative_s']:.1f} s in {len(cost)} rounds"
            less = f"{saved:.1f} % less than naive ({low:.1f} to {high:.1f})"
            log.info("%s, %s: %s takes %s, %s", point, sharing, policy, took, less)
    return rows


def _machine(*tables) -> dict:
    """Model, weights, device and dtype that all measured tables agree on."""
    columns = ["model", "weights", "device", "dtype"]
    found = {tuple(row) for table in tables for row in table[columns].itertuples(index=False)}
    if len(found) != 1:
        raise MissingMeasurement(
            "cumulative cost: the tables rollout_profile, prefix_sweep, restart_sweep and "
            "lora_latency were measured on different things: "
            f"{'; '.join(', '.join(row) for row in sorted(found))}; "
            "run rules profile_rollout, sweep_prefix, sweep_restart and time_lora on one model and "
            "machine"
        )
    return dict(zip(columns, found.pop(), strict=True))
