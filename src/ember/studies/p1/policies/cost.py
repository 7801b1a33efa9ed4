"""P1-6.1: cumulative cost of every policy, modelled from the measured tables (Fig 3)."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace

from ember.policies import cost as model
from ember.studies.p1.learner.tables import LEARNER
from ember.studies.p1.lora_latency.tables import LORA_LATENCY
from ember.studies.p1.policies import tables as t
from ember.studies.p1.profile.tables import ROLLOUT_PROFILE
from ember.studies.p1.restart.tables import RESTART_STORE, RESTART_SWEEP
from ember.studies.p1.rollout.tables import ROLLOUT_THROUGHPUT
from ember.studies.rows import frame
from ember.studies.steps import makes

log = logging.getLogger(__name__)


@makes(t.CUMULATIVE_COST, t.POLICY_MEMORY)
def model_cost(
    *, rollout, restart, store, latency, learner, policy_rounds, rounds: Mapping, seed: int
) -> tuple[list[dict], list[dict]]:
    """Rows of CUMULATIVE_COST and POLICY_MEMORY from six tables: paths, data frames or rows.

    rollout: ROLLOUT_THROUGHPUT. restart: RESTART_SWEEP. store: RESTART_STORE. latency:
    LORA_LATENCY. learner: LEARNER. policy_rounds: POLICY_ROUNDS. rounds: the settings `p1.rounds`.
    Raises MissingMeasurement naming table, point and rule where a table lacks what a policy needs.
    """
    named = {
        "rollout": (rollout, ROLLOUT_THROUGHPUT),
        "restart": (restart, RESTART_SWEEP),
        "store": (store, RESTART_STORE),
        "latency": (latency, LORA_LATENCY),
        "learner": (learner, LEARNER),
    }
    measured, machine, simulated = _measured(named, policy_rounds)
    costs, needs = [], []
    for loop in loops(rounds):
        prices = model.Prices(measured, loop, rounds["bootstrap"], seed)
        operating = _operating(loop)
        for history in _histories(simulated, loop):
            labels = operating | _labels(history) | machine
            need = model.memory(prices, history)
            needs.append(labels | need)
            cost = model.policy_cost(prices, history, need["placement"])
            labels |= {
                "placement": need["placement"],
                "call_prompts": int(prices.calls["prompts"].iloc[0]),
                "micro_batch": prices.micro_batch,
                "n": prices.fewest,
            }
            costs += [labels | row for row in cost]
            last = cost[-1]
            saved = [100 * last[f"round_saved{end}"] for end in ("", "_low", "_high")]
            took = f"{last['cumulative_s']:.1f} s in {len(cost)} rounds"
            less = "{:.1f} % less than naive ({:.1f} to {:.1f})".format(*saved)
            kept = f"kept: {need['placement']}"
            log.info("%s: %s takes %s, %s; %s", loop, labels["policy"], took, less, kept)
    return costs, needs


@makes(t.POLICY_BATCH1)
def model_batch1(
    *, profile, restart, latency, policy_rounds, rounds: Mapping, seed: int
) -> list[dict]:
    """Rows of POLICY_BATCH1: as the seed programme priced it, rollouts one at a time.

    profile: ROLLOUT_PROFILE; the others as for `model_cost`.
    """
    named = {
        "rollout": (profile, ROLLOUT_PROFILE),
        "restart": (restart, RESTART_SWEEP),
        "latency": (latency, LORA_LATENCY),
    }
    measured, machine, simulated = _measured(named, policy_rounds)
    rows = []
    for point in rounds["points"]:
        for sharing in ("separate", "shared"):
            loop = replace(next(loops(rounds | {"points": [point]})), rows=1, sharing=sharing)
            prices = model.SinglePrices(measured, loop, rounds["bootstrap"], seed)
            for history in _histories(simulated, loop):
                cost = model.policy_cost(prices, history)
                row = _operating(loop) | _labels(history) | machine
                row |= {"rounds": len(cost), "total_s": cost[-1]["cumulative_s"]}
                for name in t.POLICY_BATCH1.names:
                    if name.endswith("_s") and name != "total_s":
                        row[name] = sum(one[name] for one in cost)
                    elif "_saved" in name:
                        row[name] = cost[-1][name]
                row["prefill_share"] = prices.prefill_share(int(history[0]["num_layers"]))
                row["n"] = prices.fewest
                rows.append({name: row[name] for name in t.POLICY_BATCH1.names})
    return rows


def loops(rounds: Mapping) -> Iterator[model.Loop]:
    """The operating points of the settings `p1.rounds`: at each workload first the one that figures
    show (the first of rows, learner and recurrence, candidates sharing KV), then the others, of
    which each differs from it in one thing."""
    sizes = {key: rounds[key] for key in ("prompts", "candidates")}
    for point in rounds["points"]:
        usual = {key: rounds[key][0] for key in ("rows", "learner", "recurrence")}
        loop = model.Loop(**point, **sizes, **usual)
        yield loop
        yield from (replace(loop, rows=rows) for rows in rounds["rows"][1:])
        yield replace(loop, sharing="independent", rows=rounds["independent_rows"])
        yield from (replace(loop, learner=form) for form in rounds["learner"][1:])
        yield from (replace(loop, recurrence=every) for every in rounds["recurrence"][1:])


def _operating(loop: model.Loop) -> dict:
    return {"point": loop.point} | {
        key: value
        for key, value in asdict(loop).items()
        if key not in ("prefix", "prompts", "candidates")
    }


def _labels(history: list[dict]) -> dict:
    return {key: history[0][key] for key in ("policy", "label")} | {"evidence": "modelled"}


def _histories(simulated, loop: model.Loop) -> Iterator[list[dict]]:
    """The rounds of each policy under a loop's workload, in order."""
    here = simulated[
        (simulated["point"] == loop.point)
        & (simulated["sharing"] == loop.sharing)
        & (simulated["recurrence"] == loop.recurrence)
    ]
    for _, group in here.groupby("policy", sort=False):
        yield group.sort_values("round").to_dict("records")


def _measured(named: Mapping, policy_rounds) -> tuple[model.Measured, dict, object]:
    """The tables, what they agree on having been measured on, and the simulated rounds."""
    simulated = frame(policy_rounds, t.POLICY_ROUNDS)
    tables = {name: frame(*given) for name, given in named.items()}
    absent = {name: None for name in ("store", "learner") if name not in tables}
    depth = int(simulated["num_layers"].iloc[0])
    return model.Measured(**tables, **absent, num_layers=depth), _machine(named, tables), simulated


def _machine(named: Mapping, tables: Mapping) -> dict:
    """Model, weights, device and dtype that all measured tables agree on."""
    columns = ["model", "weights", "device", "dtype"]
    found = {
        name: {tuple(row) for row in table[columns].itertuples(index=False)}
        for name, table in tables.items()
    }
    if len(set.union(*found.values())) != 1:
        told = "; ".join(
            f"{named[name][1].name}: {', '.join(map(str, machine))}"
            for name, machines in found.items()
            for machine in sorted(machines)
        )
        raise model.MissingMeasurement(
            f"cumulative cost: its tables were measured on different things ({told})\n"
            "measure all of them on one model and machine"
        )
    return dict(zip(columns, next(iter(found.values())).pop(), strict=True))
