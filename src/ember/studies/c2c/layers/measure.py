"""Sensitivity of each layer, schedules planned from it, and what they answer (C-M6).

Sensitivities and choices are of the development split; schedules are judged on the test split.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ember.c2c import schedule as s
from ember.c2c.points import USUAL, distinct, point
from ember.formats.axes import Along
from ember.formats.pairs import RAW, axes_of
from ember.records.schema import MEASURED_ON
from ember.studies.c2c.layers.tables import C2C_SCHEDULES
from ember.studies.c2c.point_tables import C2C_POINTS
from ember.studies.c2c.points import Bench
from ember.studies.rows import records
from ember.studies.steps import makes


@makes(C2C_POINTS, C2C_SCHEDULES)
def plan_schedules(
    *,
    sharer: str | Path,
    receiver: str | Path,
    fuser: str | Path,
    questions,
    settings: Mapping,
    stratum: str,
    world_seed: int,
    batch_size: int,
    limit: int | None,
    shards: str | Path,
    runtime: Mapping,
    code: str = "",
) -> tuple[list[dict], list[dict]]:
    """Rows of C2C_POINTS on the development split, each layer alone in each scheme, and of
    C2C_SCHEDULES."""
    models = (sharer, receiver, fuser)
    bench = Bench.of(
        models, questions, "development", "layers", world_seed, batch_size, limit, runtime
    )
    made = bench.pair.fuser
    reading = s.readers(made.sources, made.open_gates())
    alone = {
        (layer, scheme): _scheduled(
            f"only{layer}-{scheme}",
            spread({n: scheme if n == layer else RAW for n in reading}, reading, len(made)),
            settings,
        )
        for layer in reading
        for scheme in settings["schemes"]
        if scheme != RAW
    }
    rows = bench.measure([point(), *alone.values()], shards, code)
    losses = _losses(rows, alone, reading, settings["schemes"], stratum)
    count = max(1, round(rows[0]["passage_tokens"]))
    shape = (count, made.shape.source_heads, made.shape.source_dim)
    wanted = {RAW, settings["wide"], settings["narrow"], *settings["schemes"]}
    for told in settings["schedules"].values():
        wanted |= {told["default"], *(one["scheme"] for one in told["overrides"])}
    size = {scheme: _bytes(scheme, settings["axis"], shape) for scheme in wanted}
    about = {name: bench.about[name] for name in ("world", *(c.name for c in MEASURED_ON))}
    found = []
    for name, told in planned(settings, losses, size, reading, len(made)).items():
        sent = s.by_sharer(told["schemes"], reading)
        share = sum(size[scheme] for scheme in sent.values()) / (len(reading) * size[RAW])
        found.append(
            {
                "schedule": name,
                "kind": told["kind"],
                "rival": told.get("rival"),
                "budget": told.get("budget"),
                "schemes": ",".join(told["schemes"]),
                "sent": " ".join(f"{layer}:{scheme}" for layer, scheme in sent.items()),
                "predicted_loss": _sum_of(losses, sent),
                "bytes_share": share,
                "effective_bits": 16 * share,
                **about,
            }
        )
    return rows, found


def planned(
    settings: Mapping,
    losses: Mapping[int, Mapping[str, float]],
    size: Mapping[str, float],
    reading: Mapping[int, Sequence[int]],
    depth: int,
) -> dict[str, dict]:
    """Schedules by name: kind, schemes by the receiver's layer, budget, rival.

    The last layers wide; the optimum at as many bytes as each of them, and at each budget, with the
    same schemes backwards and at random beside it; those that the configuration names. size: bytes
    of a layer by scheme. A budget that nothing fits has no optimum.
    """
    full = len(reading) * size[RAW]
    found = {
        name: {"kind": "named", "schemes": s.by_target(told, depth)}
        for name, told in settings["schedules"].items()
    }
    budgets = {f"{share:g}": share for share in settings["budgets"]}
    for count in settings["last"]:
        schemes = s.last(count, depth, settings["wide"], settings["narrow"])
        found[f"last{count}"] = {"kind": "last", "schemes": schemes}
        sent = s.by_sharer(schemes, reading)
        budgets[f"last{count}"] = sum(size[scheme] for scheme in sent.values()) / full
    sizes = {layer: {scheme: size[scheme] for scheme in of} for layer, of in losses.items()}
    # Of equal losses the smaller scheme.
    least = {
        layer: {scheme: loss + 1e-9 * size[scheme] for scheme, loss in of.items()}
        for layer, of in losses.items()
    }
    for name, share in budgets.items():
        if share * full < sum(min(of.values()) for of in sizes.values()):
            continue
        best = s.optimum(least, sizes, share * full)
        dealt = {("optimum", ""): best, ("backwards", ""): s.backwards(best)}
        dealt |= {("random", n): s.shuffled(best, n) for n in range(settings["shuffles"])}
        for (kind, number), schemes in dealt.items():
            rival = name if name in found else f"backwards@{name}"
            found[f"{kind}{number}@{name}"] = {
                "kind": kind,
                "schemes": spread(schemes, reading, depth),
                "budget": share,
                "rival": rival if kind == "optimum" else None,
            }
    return found


@makes(C2C_POINTS)
def measure_schedules(
    *,
    sharer: str | Path,
    receiver: str | Path,
    fuser: str | Path,
    questions,
    schedules,
    settings: Mapping,
    world_seed: int,
    batch_size: int,
    limit: int | None,
    shards: str | Path,
    runtime: Mapping,
    code: str = "",
) -> list[dict]:
    """Rows of C2C_POINTS: every schedule, and each scheme for all layers, on the test split."""
    models = (sharer, receiver, fuser)
    bench = Bench.of(models, questions, "test", "layers", world_seed, batch_size, limit, runtime)
    uniform = [
        point(**USUAL | {"scheme": scheme, "axis": settings["axis"]})
        for scheme in settings["schemes"]
        if scheme != s.NONE
    ]
    told = [
        _scheduled(row["schedule"], row["schemes"].split(","), settings)
        for row in records(schedules, C2C_SCHEDULES)
    ]
    # Controls of few layers coincide: each order is measured once and stands under all its names.
    first = {one["schemes"]: one for one in reversed(told)}
    measured = bench.measure(distinct([*uniform, *first.values()]), shards, code)
    again = {one["point"]: [] for one in told}
    for row in measured:
        again.setdefault(row["point"], []).append(row)
    copies = [
        row | one
        for one in told
        if one["point"] != (same := first[one["schemes"]])["point"]
        for row in again[same["point"]]
    ]
    return measured + copies


def spread(chosen: Mapping[int, str], reading: Mapping[int, Sequence[int]], depth: int) -> list:
    """Schemes by the receiver's layer from those by the sharer's; NONE for what reads nothing."""
    found = [s.NONE] * depth
    for layer, targets in reading.items():
        for target in targets:
            found[target] = chosen[layer]
    return found


def _scheduled(name: str, schemes: Sequence[str], settings: Mapping) -> dict:
    said = {"scheme": settings["narrow"], "axis": settings["axis"]}
    return point(**said, schedule=name, schemes=",".join(schemes))


def _bytes(scheme: str, axis: str, shape: tuple[int, int, int]) -> int:
    if scheme == s.NONE:
        return 0
    return sum(Along(scheme, one).bytes(shape) for one in axes_of(axis))


def _sum_of(losses: Mapping[int, Mapping[str, float]], sent: Mapping[int, str]) -> float | None:
    """Of a schedule's layers; None where a scheme was not measured."""
    known = [losses[layer].get(scheme) for layer, scheme in sent.items()]
    return None if None in known else float(sum(known))


def _losses(
    rows: Sequence[Mapping],
    alone: Mapping[tuple[int, str], Mapping],
    reading: Mapping,
    schemes: Sequence[str],
    stratum: str,
) -> dict[int, dict[str, float]]:
    """Nats above the FP16 channel's, by layer and scheme, of the questions of a stratum."""
    means: dict[str, list] = {}
    for row in rows:
        if stratum in ("all", row["stratum"]):
            means.setdefault(row["point"], []).append(row["nll"])
    nll = {name: float(np.mean(list(itertools.chain(*lists)))) for name, lists in means.items()}
    return {
        layer: {
            scheme: 0.0
            if scheme == RAW
            else max(0.0, nll[alone[layer, scheme]["point"]] - nll[RAW])
            for scheme in schemes
        }
        for layer in reading
    }
