"""Layer schedules: a scheme for each of the receiver's layers, and the best one for a byte budget.

What is sent are the sharer's layers: one that several of the receiver's layers read is sent once,
in the widest scheme that any of them asks for.
"""

import random
from collections.abc import Mapping, Sequence

from ember.formats.pairs import RAW, VALID
from ember.records.errors import EmberError, nearest

NONE = "none"
"""The scheme of layers that are not sent; what would read them stays as the receiver has it."""


class BadSchedule(EmberError):
    """A schedule that fits no model or no budget; the message says how to fix it."""


def by_target(schedule: Mapping, layers: int) -> list[str]:
    """Scheme of each of the receiver's layers, of `{default, overrides: [{layers, scheme}]}`.

    Raises BadSchedule for layers that the receiver has not, that stand twice, and schemes that
    nobody knows.
    """
    found, set_before = [schedule["default"]] * layers, set()
    for override in schedule.get("overrides", ()):
        for layer in override["layers"]:
            if not 0 <= layer < layers or layer in set_before:
                what = "stands twice" if layer in set_before else f"is none of 0 to {layers - 1}"
                raise BadSchedule(f"layer_schedule: layer {layer} {what}; correct its overrides")
            set_before.add(layer)
            found[layer] = override["scheme"]
    for scheme in found:
        if scheme not in (*VALID, NONE):
            raise BadSchedule(f"layer_schedule: unknown scheme {scheme!r}.{nearest(scheme, VALID)}")
    return found


def last(count: int, layers: int, wide: str = RAW, narrow: str = "int8") -> list[str]:
    """The last `count` layers wide, the others narrow."""
    return [narrow] * (layers - count) + [wide] * count


def by_sharer(schemes: Sequence[str], targets: Mapping[int, Sequence[int]]) -> dict[int, str]:
    """Scheme of each of the sharer's layers, from those of the receiver's layers that read it."""
    return {
        source: max((schemes[target] for target in reading), key=width)
        for source, reading in targets.items()
        if reading
    }


def readers(sources: Sequence[int], gates: Sequence[Sequence[bool]]) -> dict[int, list[int]]:
    """The receiver's layers that read each of the sharer's through an open gate.

    sources: the sharer's layer of each of the receiver's; gates: whether they are open,
    [layer][keys, values]. Layers that nobody reads are left out: they are not sent.
    """
    found: dict[int, list[int]] = {}
    for target, (source, opened) in enumerate(zip(sources, gates, strict=True)):
        if any(opened):
            found.setdefault(source, []).append(target)
    return found


def width(scheme: str) -> int:
    """Bits of a code, which stand in the scheme's name; 0 of NONE."""
    if scheme in (RAW, NONE):
        return 16 * (scheme == RAW)
    return int(scheme[-1])


def optimum(
    losses: Mapping[int, Mapping[str, float]], sizes: Mapping[int, Mapping[str, float]], budget
) -> dict[int, str]:
    """Scheme of each layer with the least sum of losses whose sizes sum up to no more than budget.

    losses and sizes: by layer and scheme; losses are taken to add up. Solved exactly (a choice of
    one binary a layer). Raises BadSchedule where even the smallest schemes exceed the budget.
    """
    import pulp

    problem = pulp.LpProblem("schedule", pulp.LpMinimize)
    takes = {
        layer: {s: problem.add_variable(f"take_{layer}_{s}", cat="Binary") for s in schemes}
        for layer, schemes in losses.items()
    }

    def total(of: Mapping):
        return pulp.lpSum(
            of[layer][scheme] * take
            for layer, schemes in takes.items()
            for scheme, take in schemes.items()
        )

    problem += total(losses)
    for schemes in takes.values():
        problem += pulp.lpSum(schemes.values()) == 1
    problem += total(sizes) <= budget
    # CBC 2.10.3, which PuLP ships, loses optima in its preprocessing of integer problems.
    problem.solve(pulp.PULP_CBC_CMD(msg=False, timeLimit=60, options=["preprocess off"]))
    if pulp.LpStatus[problem.status] != "Optimal":
        least = sum(min(schemes.values()) for schemes in sizes.values())
        raise BadSchedule(
            f"no schedule takes {budget:.0f} bytes: the smallest takes {least:.0f}.\n"
            "Raise the budget, or name a smaller scheme."
        )
    return {
        layer: next(scheme for scheme, take in schemes.items() if round(take.value()))
        for layer, schemes in takes.items()
    }


def backwards(schemes: Mapping[int, str]) -> dict[int, str]:
    """The same schemes in the opposite order of layers: a control that takes the same bytes."""
    layers = sorted(schemes)
    return {layer: schemes[other] for layer, other in zip(layers, reversed(layers), strict=True)}


def shuffled(schemes: Mapping[int, str], seed: int) -> dict[int, str]:
    """The same schemes, dealt to the layers at random: a control that takes the same bytes."""
    layers = sorted(schemes)
    dealt = [schemes[layer] for layer in layers]
    random.Random(seed).shuffle(dealt)
    return dict(zip(layers, dealt, strict=True))
