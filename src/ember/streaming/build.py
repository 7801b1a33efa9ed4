"""Methods from the configuration: plain dicts in, method objects out. No torch.

Modules of methods and selectors are imported by their names, so that a job's code hash covers the
methods that it runs and no others (see `modules`).
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from importlib import import_module
from pathlib import Path

from ember.records.errors import nearest
from ember.streaming.method import METHODS, BadMethod, Method
from ember.streaming.selector import SELECTORS

HERE = Path(__file__).parent
OF_THE_PERIOD = ("max_drop", "overlap", "slack")  # a fraction is of compression_interval


def names(kind: str = "methods") -> list[str]:
    """Names of the methods (or selectors) that there are: one file each."""
    return sorted(file.stem for file in (HERE / kind).glob("[a-z]*.py"))


def modules(specs: Iterable[Mapping]) -> list[str]:
    """Modules that points need, as `ember.records.code` takes them."""
    found = {f"ember.streaming.methods.{spec['name']}" for spec in specs}
    found |= {f"ember.streaming.selectors.{s['selector']}" for s in specs if s.get("selector")}
    return sorted(found)


def build(spec: Mapping) -> Method:
    """A method from plain data, such as {name: lazy_prune, peak: 256, compression_interval: 64}.

    Raises `BadMethod` for unknown names (naming the nearest), and unknown, missing or bad values.
    """
    spec = dict(spec)
    kind = _find(spec.pop("name", None), "method", METHODS)
    known = {field.name: field for field in fields(kind) if field.init}
    for key in spec:
        if key not in known:
            raise BadMethod(f"{kind.name} has no {key!r}.{nearest(key, known)}")
    missing = [k for k, f in known.items() if f.default is MISSING and k not in spec]
    if missing:
        raise BadMethod(f"{kind.name} needs {', '.join(missing)}; set it in the list of points")
    if "selector" in spec:
        spec["selector"] = _find(spec["selector"], "selector", SELECTORS)()
    return kind(**spec)


def specs_of(settings: Mapping) -> list[dict]:
    """Every point of the configuration's section `streaming`, as `build` takes it.

    Full attention takes streams as long as the largest peak.
    """
    grid = settings["grid"]
    longest, found = max(budget["peak"] for budget in grid), programme_of(settings)
    for point in settings["points"]:
        point = dict(point)
        further = settings["sweep"] or [] if point.pop("sweep", False) else []
        found += expand(point, [*grid, *further], longest)
    return [spec for place, spec in enumerate(found) if spec not in found[:place]]


def speed_specs(speed: Mapping) -> list[dict]:
    """The points of the section `speed`; the last is the one that its switches are tried on."""
    budgets = [
        {"peak": speed["peak"], "compression_interval": r} for r in speed["compression_interval"]
    ]
    first, base = budgets[0], {"name": "refresh", "refresh_budget": 16, "selector": "uniform"}
    plain = [{"name": name, "peak": speed["peak"]} for name in ("full", "streaming_llm")]
    lazy = [{"name": "lazy_prune"} | budget for budget in budgets]
    rest = budgets[-1]["compression_interval"] // 4
    gentle = [{"name": "overlap", "overlap": rest}, {"name": "slack", "slack": 3 * rest}]
    gentle = [point | budgets[-1] for point in gentle]  # what S-3 found to lose less
    switched = base | first | {"max_drop": max(2, first["compression_interval"] // 4)}
    return [*plain, *lazy, *gentle, switched]


def programme_of(settings: Mapping) -> list[dict]:
    """S-3's eight points: {period} x {max_drop or none} x {refresh or none}, at one peak."""
    given, found = settings["programme"], []
    for period in given["compression_interval"]:
        at = {"peak": settings["latency"]["peak"], "compression_interval": period}
        portions = {"max_drop": given["max_drop"]}
        kept = {"refresh_budget": given["refresh_budget"], "selector": given["selector"]}
        found += [
            {"name": "lazy_prune", **at},
            {"name": "max_drop", **at, **portions},
            {"name": "refresh", **at, **kept},
            {"name": "refresh", **at, **kept, **portions},
        ]
    return found


def expand(point: Mapping, grid: Sequence[Mapping], longest: int) -> list[dict]:
    """One spec for each combination of the values that a point lists, at each peak and period.

    The point may name its own; what prunes nothing has the peak `longest`.
    """
    kind = _find(point.get("name"), "method", METHODS)
    free = {field.name for field in fields(kind) if field.init}
    found = []
    for budget in grid if kind.prunes else [{"peak": longest}]:
        axes = {key: budget[key] for key in budget if key in free} | dict(point)
        axes = {k: v if isinstance(v, list) else [v] for k, v in axes.items()}
        for values in itertools.product(*axes.values()):
            spec = dict(zip(axes, values, strict=True))
            for key in OF_THE_PERIOD:
                if isinstance(spec.get(key), float):
                    spec[key] = round(spec[key] * spec.get("compression_interval", 1))
            spec = {key: value for key, value in spec.items() if value is not None}
            if spec not in found:
                found.append(spec)
    return found


def point_id(method: Method) -> str:
    """A short name of a method with its parameters, the usual ones left out."""
    parts = [method.name, f"P{method.peak}"]
    if method.prunes:
        parts.append(f"R{method.compression_interval}")
    for field in fields(method):
        value = getattr(method, field.name)
        if field.name in ("peak", "compression_interval") or not field.init:
            continue
        if value is not None and value != field.default:
            shown = getattr(value, "name", value)
            parts.append(field.name if shown is True else f"{field.name}={shown}")
    return "-".join(parts)


def columns(method: Method) -> dict:
    """What tables say of a point: its id, method and budget."""
    return {
        "point": point_id(method),
        "method": method.name,
        "peak": method.peak,
        "compression_interval": method.compression_interval,
        "n_sink": method.n_sink,
        "window": method.window if method.prunes else None,
    }


def _find(name: object, what: str, registry: Mapping[str, type]) -> type:
    known = names(f"{what}s")
    if name not in known:
        raise BadMethod(f"unknown {what} {name!r}.{nearest(name, known)}")
    import_module(f"ember.streaming.{what}s.{name}")
    return registry[name]
