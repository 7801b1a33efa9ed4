"""Points of a channel from the configuration: plain dicts, as users know the keys. No torch.

A point says what of the sharer's KV is sent and how. Grids list values, and every combination is a
point. Its `id` leaves out what is usual, so that the same point has the same id in every study.
"""

import itertools
from collections.abc import Mapping, Sequence

from ember.formats.pairs import RAW, problem

ALL = "all"
"""The mode of points that send every token in scope, whatever selector was named."""
ORACLES = ("proj_vnorm_own_topk",)
"""Modes that need the receiver's own KV (`ember.c2c.select`)."""
USUAL = {
    "scheme": RAW,
    "axis": "token",
    "symmetric": True,
    "group": 8,
    "eps": 0.0,
    "quantize_target": "source",
    "mode": ALL,
    "proportion": 1.0,
    "scope": "prompt",
    "min_tokens": 0,
    "seed": 0,
    "sparse_fuse": True,
    "scatter_fill": "receiver_only",
    "index_dtype_bytes": 2,
    "include_scale_overhead": True,
    "schedule": "",
    "schemes": "",
}
_SAID = ("scheme", "axis", "group", "symmetric", "mode", "proportion", "schedule", "schemes")
_QUANT = ("scheme", "axis", "symmetric", "group", "eps", "quantize_target")
_TRANSFER = {
    **{name: f"token_select_{name}" for name in ("mode", "proportion", "scope", "min_tokens")},
    "seed": "token_select_seed",
    **{name: name for name in ("sparse_fuse", "scatter_fill")},
    **{name: name for name in ("index_dtype_bytes", "include_scale_overhead")},
}


def point(**said) -> dict:
    """A point with its id, of what is not usual. Of FP16 the axis says nothing, of all tokens
    neither the mode nor how they are chosen."""
    found = USUAL | said
    if found["scheme"] == RAW and not found["schedule"]:
        found |= {name: USUAL[name] for name in ("axis", "symmetric", "eps", "quantize_target")}
    if found["axis"] != "group":
        found["group"] = USUAL["group"]
    if found["proportion"] >= 1:
        found |= {name: USUAL[name] for name in ("mode", "min_tokens", "seed", "scatter_fill")}
    return {"point": _id(found), **found}


def _id(found: Mapping) -> str:
    parts = [found["schedule"] or found["scheme"]]
    if parts[0] != RAW:
        parts.append(found["axis"] + (str(found["group"]) if found["axis"] == "group" else ""))
    parts += [] if found["symmetric"] else ["asymmetric"]
    if found["mode"] != ALL:
        parts += [found["mode"], f"{found['proportion']:g}"]
    for name, usual in USUAL.items():
        if name not in _SAID and found[name] != usual:
            value = found[name]
            parts.append(value if isinstance(value, str) else f"{name}={value:g}")
    return "-".join(parts)


def expand(quant: Mapping, transfer: Mapping | None = None) -> list[dict]:
    """Every combination of what a `kv_quant_config` and a `kv_transfer_config` list."""
    values = {name: quant[name] for name in _QUANT}
    if transfer is not None:
        values |= {name: transfer[key] for name, key in _TRANSFER.items()}
    lists = [value if isinstance(value, list) else [value] for value in values.values()]
    return [point(**dict(zip(values, one, strict=True))) for one in itertools.product(*lists)]


def distinct(points: Sequence[Mapping]) -> list[dict]:
    """The FP16 channel, which all are compared with, and each point once."""
    return list({one["point"]: dict(one) for one in (point(), *points)}.values())


def ptq(settings: Mapping) -> list[dict]:
    """Points of the section `ptq` (C-M1, C-M2)."""
    return distinct([one for quant in settings["grids"] for one in expand(quant)])


def with_stats(settings: Mapping) -> list[dict]:
    """Points of the section `ptq` whose scales are tabulated."""
    return [
        one
        for quant in settings["grids"]
        if quant["collect_stats"]
        for one in expand(quant)
        if one["scheme"] != RAW and one["quantize_target"] != "base"
    ]


def length(settings: Mapping) -> list[dict]:
    """Points of the section `length` (C-M3): so much of the instruction alone."""
    found = []
    for base in expand(settings["kv_quant_config"]):
        for mode in settings["kv_cache_order_mode"]:
            for share in settings["kv_cache_proportion"]:
                said = {"mode": mode, "proportion": share, "scope": "instruction_only"}
                found.append(point(**{k: base[k] for k in USUAL} | said))
    return distinct(found)


def selection(settings: Mapping) -> list[dict]:
    """Points of the section `selection` (C-M8), and `back` wherever a token is left out."""
    found = []
    for grid in settings["grids"]:
        found += expand(grid["kv_quant_config"], grid["kv_transfer_config"])
    backs = [
        point(**{k: one[k] for k in USUAL} | {"mode": "back", "scatter_fill": "receiver_only"})
        for one in found
        if one["mode"] != ALL
    ]
    return distinct([*found, *backs])


def wrong_pairs(quant: Mapping) -> list[str]:
    """What is wrong with the schemes and axes that a `kv_quant_config` lists."""
    told = (
        problem(scheme, axis, symmetric=symmetric)
        for scheme in quant["scheme"]
        for axis in quant["axis"]
        for symmetric in quant["symmetric"]
    )
    return [one for one in told if one]
