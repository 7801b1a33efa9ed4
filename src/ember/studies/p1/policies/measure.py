"""P1-5: what every configured policy recomputes at every workload point, round by round."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from ember.policies.build import build_policies
from ember.policies.cost import plan_columns
from ember.policies.policy import CachePolicy, RoundStats
from ember.policies.simulator import Workload, simulate
from ember.records.errors import EmberError
from ember.records.foreign import read_object
from ember.studies.p1.policies.tables import POLICY_ROUNDS
from ember.studies.steps import makes

log = logging.getLogger(__name__)

COUNTED = (
    *("round", "prompts", "recompute_cells", "reuse_cells", "corrected_cells", "stale_cells"),
    *("full_refreshes", "hits", "misses", "recompute_ratio", "mean_staleness"),
    "recompute_by_layer",
)


@makes(POLICY_ROUNDS)
def simulate_policies(
    *, model: str | Path, policies: Sequence[Mapping], rounds: Mapping
) -> list[dict]:
    """Rows of POLICY_ROUNDS for a model directory, of which only config.json is read.

    policies: plain dicts (see `build_policies`). rounds: rounds, prompts, candidates, recurrence
    and points, each a dict of context, generation and prefix.
    """
    num_layers, rows = layers_of(model), []
    prompts, candidates = rounds["prompts"], rounds["candidates"]
    first, *others = rounds["recurrence"]
    for point in rounds["points"]:
        lengths = {"prompt_tokens": point["context"], "shared_prefix": point["prefix"]}
        workloads = [
            ("shared", Workload(prompts, **lengths, recurrence=first)),
            (
                "independent",
                Workload(prompts, **lengths, recurrence=first, requests_each=candidates),
            ),
            ("separate", Workload(prompts * candidates, **lengths, recurrence=first)),
            *(("shared", Workload(prompts, **lengths, recurrence=every)) for every in others),
        ]
        for sharing, workload in workloads:
            for policy in build_policies(policies, num_layers):
                labels = {
                    "point": f"{point['context']}/{point['generation']}",
                    **{key: point[key] for key in ("context", "generation", "prefix")},
                    "sharing": sharing,
                    "recurrence": workload.recurrence,
                }
                found = simulate(policy, workload, rounds["rounds"])
                rows += [labels | _row(policy, stats) for stats in found]
                what = (labels["point"], sharing, workload.recurrence, policy.id)
                ratio = policy.totals()["recompute_ratio"]
                log.info("%s, %s, every %d: %s recomputes %.6f of all cells", *what, ratio)
    return rows


def layers_of(model: str | Path) -> int:
    """Layers of a model directory, from its config.json alone."""
    remedy = "Make the model again, or point models.<name> to a Hugging Face model directory."
    config = read_object(Path(model) / "config.json", EmberError, remedy)
    return config.get("num_hidden_layers", int, low=1, high=1 << 13)


def _row(policy: CachePolicy, stats: RoundStats) -> dict:
    by_token = stats.recompute_by_token()
    return {
        "policy": policy.id,
        "label": policy.label,
        "rank": getattr(policy, "rank", 0),
        "frozen_layers": policy.frozen_layers,
        "boundaries": list(policy.boundaries),
        "num_layers": policy.num_layers,
        **{name: getattr(stats, name) for name in COUNTED},
        "token_bounds": [token for token, _ in by_token],
        "recompute_by_token": [cells for _, cells in by_token],
        "ages": sorted(stats.ages),
        "age_prefills": [stats.ages[age] for age in sorted(stats.ages)],
        **plan_columns(stats.plans.items()),
        "evidence": "modelled",
    }
