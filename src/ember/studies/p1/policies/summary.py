"""One row a policy: what it recomputes over all rounds, and what the model says that costs."""

from ember.studies.p1.policies.tables import CUMULATIVE_COST, POLICY_ROUNDS, POLICY_SUMMARY
from ember.studies.rows import frame
from ember.studies.steps import makes

_KEYS = ["point", "sharing", "policy"]


@makes(POLICY_SUMMARY)
def summarise_policies(rounds, cost) -> list[dict]:
    """Rows of `POLICY_SUMMARY` from the tables `policy_rounds` and `cumulative_cost`."""
    rounds, cost = frame(rounds, POLICY_ROUNDS), frame(cost, CUMULATIVE_COST)
    costs = dict(iter(cost.groupby(_KEYS, sort=False)))
    rows = []
    for key, counted in rounds.groupby(_KEYS, sort=False):
        priced = costs[key]
        last = priced.loc[priced["round"].idxmax()]
        cells = (counted["recompute_cells"] + counted["reuse_cells"]).sum()
        rows.append(
            dict(zip(_KEYS, key, strict=True))
            | {
                "label": last["label"],
                "rounds": len(counted),
                "recompute_ratio": float(counted["recompute_cells"].sum() / cells),
                "stale_ratio": float(counted["stale_cells"].sum() / cells),
                "mean_staleness": float(counted["mean_staleness"].mean()),
                **{name: int(counted[name].sum()) for name in ("full_refreshes", "hits", "misses")},
                "prefill_s": float(priced["prefill_s"].sum()),
                "correction_s": float(priced["correction_s"].sum()),
                "total_s": float(last["cumulative_s"]),
                **{
                    name: float(last[name])
                    for name in ("savings_vs_naive", "savings_low", "savings_high")
                },
                **{name: last[name] for name in ("model", "weights", "device")},
                "evidence": "modelled",
            }
        )
    return rows
