"""One row a policy and operating point: what it recomputes, what the model says that costs."""

from ember.studies.p1.policies import tables as t
from ember.studies.rows import frame
from ember.studies.steps import makes

_SIMULATED = ["point", "sharing", "recurrence", "policy"]


@makes(t.POLICY_SUMMARY)
def summarise_policies(rounds, cost, memory) -> list[dict]:
    """Rows of POLICY_SUMMARY from tables POLICY_ROUNDS, CUMULATIVE_COST and POLICY_MEMORY."""
    rounds, cost = frame(rounds, t.POLICY_ROUNDS), frame(cost, t.CUMULATIVE_COST)
    memory = frame(memory, t.POLICY_MEMORY)
    simulated = dict(iter(rounds.groupby(_SIMULATED, sort=False)))
    needs = memory.set_index(list(t.POLICY_MEMORY.key)).sort_index()
    rows = []
    for key, priced in cost.groupby(list(t.POLICY_SUMMARY.key), sort=False):
        last = priced.loc[priced["round"].idxmax()]
        counted, need = simulated[tuple(last[_SIMULATED])], needs.loc[key]
        cells = (counted["recompute_cells"] + counted["reuse_cells"]).sum()
        row = {name: last.get(name) for name in t.POLICY_SUMMARY.names}
        row |= {name: int(counted[name].sum()) for name in ("full_refreshes", "hits", "misses")}
        terms = (name for name in t.POLICY_SUMMARY.names if name.endswith("_s") and name in priced)
        row |= {name: float(priced[name].sum()) for name in terms}
        kept = need[[name for name in needs if name.startswith("kept_") and "bytes" in name]].sum()
        rows.append(
            row
            | {
                "rounds": len(counted),
                "total_s": float(last["cumulative_s"]),
                "recompute_ratio": float(counted["recompute_cells"].sum() / cells),
                "stale_ratio": float(counted["stale_cells"].sum() / cells),
                "mean_staleness": float(counted["mean_staleness"].mean()),
                "oldest_reuse": max((age for ages in counted["ages"] for age in ages), default=0),
                "kept_gb": float(kept) / 1e9,
                "needed_gb": float(need["needed_bytes"]) / 1e9,
                "device_gb": float(need["device_bytes"]) / 1e9,
            }
        )
    return rows
