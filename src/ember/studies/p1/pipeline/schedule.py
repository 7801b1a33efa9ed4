"""The pipeline's schedule, modelled: how long a split takes, and which split is best (P1-1.2).

A stage takes for a unit of work what its parts take on one device: a call, its layers, and the
embedding or head and sampling. A unit of the second stage waits for the first one's message; a
decoding step of the first waits for the sampled tokens. `makespan` adds that up for a given split;
`best_split` hands the same constraints to a solver (PuLP's CBC) with the split left free.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from ember.records.errors import EmberError
from ember.studies.rows import grouped


@dataclass(frozen=True)
class PhaseCosts:
    """Milliseconds of the parts of one phase: prefill of a unit, or a decoding step."""

    layers: tuple[float, ...]
    embed: float
    head: float
    sample: float
    call: float
    hidden: float
    tokens: float


@dataclass(frozen=True)
class Schedule:
    """A predicted run, in ms."""

    total: float
    busy_first: float
    busy_last: float

    @property
    def bubble_share(self) -> float:
        return 1 - (self.busy_first + self.busy_last) / (2 * self.total)


def read_costs(rows: Sequence[Mapping]) -> dict[str, PhaseCosts]:
    """Medians of a LAYER_COSTS table's rows, by phase."""
    found = {}
    for phase in ("prefill", "decode"):
        samples = grouped((row for row in rows if row["phase"] == phase), "part")
        parts = {part: median(row["ms"] for row in group) for (part,), group in samples.items()}
        layers = tuple(parts[f"layer {i}"] for i in range(len(parts)) if f"layer {i}" in parts)
        others = ("embed", "head", "sample", "call", "hidden", "tokens")
        found[phase] = PhaseCosts(layers, **{part: parts.get(part, 0.0) for part in others})
    return found


def work(unit, costs: Mapping[str, PhaseCosts], split: int) -> tuple[float, float]:
    """Milliseconds that a unit takes in the first and in the second stage."""
    cost = costs[unit.phase]
    first = cost.call + cost.embed + sum(cost.layers[:split])
    last = cost.call + sum(cost.layers[split:])
    return first, last + (cost.head + cost.sample if unit.samples else 0.0)


def makespan(
    units: Sequence, costs: Mapping[str, PhaseCosts], split: int, *, overlap: bool
) -> Schedule:
    """When the last unit ends if every stage starts each unit as early as it can."""
    free = [0.0, 0.0]  # when each stage is
    busy = [0.0, 0.0]
    replied: dict[int, float] = {}  # when a micro-batch's tokens are back
    for unit in units:
        first, last = work(unit, costs, split)
        cost = costs[unit.phase]
        begin = max(free[0], replied.get(unit.micro_batch, 0.0))
        free[0] = begin + first
        free[1] = max(free[1], free[0] + cost.hidden) + last
        if unit.replies:
            replied[unit.micro_batch] = free[1] + cost.tokens
            if not overlap:
                free[0] = replied[unit.micro_batch]
        busy[0] += first
        busy[1] += last
    return Schedule(free[1], *busy)


def best_split(units: Sequence, costs: Mapping[str, PhaseCosts]) -> int:
    """Layers of the first stage with which the units end soonest with overlap, of all splits.

    A mixed-integer programme: one binary a layer (in the first stage or not, in order), the start
    of every unit in both stages, the schedule's precedences, and the end to minimise.
    """
    import pulp

    count = len(next(iter(costs.values())).layers)
    problem = pulp.LpProblem("split", pulp.LpMinimize)
    early = [problem.add_variable(f"layer_{i}", cat="Binary") for i in range(count)]
    end = problem.add_variable("end", lowBound=0)
    problem += end
    problem += early[0] == 1
    problem += early[-1] == 0
    for before, after in itertools.pairwise(early):
        problem += before >= after
    in_first = {
        phase: pulp.lpSum(c * x for c, x in zip(cost.layers, early, strict=True))
        for phase, cost in costs.items()
    }
    ended = [None, None]
    replied: dict = {}
    for number, unit in enumerate(units):
        cost = costs[unit.phase]
        starts = [problem.add_variable(f"start_{stage}_{number}", lowBound=0) for stage in (0, 1)]
        for stage in (0, 1):
            if ended[stage] is not None:
                problem += starts[stage] >= ended[stage]
        if unit.micro_batch in replied:
            problem += starts[0] >= replied[unit.micro_batch]
        ends = cost.head + cost.sample if unit.samples else 0.0
        ended[0] = starts[0] + cost.call + cost.embed + in_first[unit.phase]
        problem += starts[1] >= ended[0] + cost.hidden
        ended[1] = starts[1] + cost.call + sum(cost.layers) - in_first[unit.phase] + ends
        if unit.replies:
            replied[unit.micro_batch] = ended[1] + cost.tokens
    problem += end >= ended[1]
    # CBC 2.10.3, which PuLP ships, loses optima in its preprocessing of integer problems.
    problem.solve(pulp.PULP_CBC_CMD(msg=False, timeLimit=120, options=["preprocess off"]))
    if pulp.LpStatus[problem.status] != "Optimal":
        raise EmberError(
            f"the solver found no best split ({pulp.LpStatus[problem.status]}).\n"
            "Look at the costs in pipeline/costs.parquet: are some of them far below zero?"
        )
    return sum(round(variable.value()) for variable in early)
