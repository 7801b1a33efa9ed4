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
        row = {name: last.get(name) for name in POLICY_SUMMARY.names}
        row |= {name: int(counted[name].sum()) for name in ("full_refreshes", "hits", "misses")}
        row |= {name: float(priced[name].sum()) for name in ("prefill_s", "correction_s")}
        rows.append(
            row
            | {
                "rounds": len(counted),
                "recompute_ratio": float(counted["recompute_cells"].sum() / cells),
                "stale_ratio": float(counted["stale_cells"].sum() / cells),
                "mean_staleness": float(counted["mean_staleness"].mean()),
                "total_s": float(last["cumulative_s"]),
            }
        )
    return rows
