"""Policies from the configuration: plain dicts in, policy objects out. No torch."""

from collections import Counter
from collections.abc import Mapping, Sequence

from ember.policies.plan import BadPolicy
from ember.policies.policy import (
    CachePolicy,
    KeepRegion,
    Naive,
    PeriodicRefresh,
    PrefixOnly,
    UpdatableKV,
    UpdateLocality,
    compose,
    layer_count,
)
from ember.records.errors import nearest


def build_policies(specs: Sequence[Mapping], num_layers: int) -> list[CachePolicy]:
    """Policies from plain dicts, such as {name: periodic_refresh, every: 10, freeze: 0.5}.

    freeze is a fraction of the layers, freeze_layers their number; keys with None count as absent.
    Raises BadPolicy for unknown names (naming the nearest), unknown, missing or bad values, and
    policies that would share an id.
    """
    policies = [_build(dict(spec), num_layers) for spec in specs]
    ids = Counter(policy.id for policy in policies)
    twice = [id for id, count in ids.items() if count > 1]
    if twice:
        raise BadPolicy(f"policies: {', '.join(twice)} appears more than once; drop the repetition")
    return policies


_NEEDS = {
    "naive": (),
    "prefix_only": (),
    "update_locality": ("freeze",),
    "periodic_refresh": ("every",),
    "updatable_kv": ("rank", "every"),
    "keep_region": (),
}
_TAKES = {
    "naive": (),
    "prefix_only": (),
    "update_locality": ("freeze", "freeze_layers", "share_prefix"),
    "periodic_refresh": ("every", "freeze", "freeze_layers", "share_prefix"),
    "updatable_kv": ("rank", "every", "freeze", "freeze_layers"),
    "keep_region": ("first_layers", "last_layers", "last_tokens"),
}


def _build(spec: dict, num_layers: int) -> CachePolicy:
    spec = {key: value for key, value in spec.items() if value is not None}
    name = spec.pop("name", None)
    if name not in _NEEDS:
        raise BadPolicy(f"policies: unknown policy {name!r}.{nearest(name, _NEEDS)}")
    for key in spec:
        if key not in _TAKES[name]:
            raise BadPolicy(f"policies: {name} has no {key!r}.{nearest(key, _TAKES[name])}")
    freeze = _freeze(name, spec, num_layers)
    given = set(spec) | ({"freeze"} if freeze is not None else set())
    missing = [key for key in _NEEDS[name] if key not in given]
    if missing:
        raise BadPolicy(f"policies: {name} needs {', '.join(missing)}; set it in the policy list")
    if name == "naive":
        return Naive(num_layers)
    if name == "prefix_only":
        return PrefixOnly(num_layers)
    if name == "updatable_kv":
        return UpdatableKV(num_layers, spec["rank"], spec["every"], freeze or 0)
    if name == "keep_region":
        return KeepRegion(num_layers, **spec)
    parts: list[CachePolicy] = []
    if freeze is not None:
        parts.append(UpdateLocality(num_layers, freeze))
    if name == "periodic_refresh":
        parts.append(PeriodicRefresh(num_layers, spec["every"]))
    if spec.get("share_prefix"):
        parts.append(PrefixOnly(num_layers))
    return compose(*parts) if len(parts) > 1 else parts[0]


def _freeze(name: str, spec: dict, num_layers: int) -> int | None:
    if "freeze" in spec and "freeze_layers" in spec:
        raise BadPolicy(f"policies: {name} has freeze and freeze_layers; set one of them")
    if "freeze_layers" in spec:
        return layer_count(name, spec["freeze_layers"], num_layers, "freeze_layers")
    if "freeze" not in spec:
        return None
    fraction = spec["freeze"]
    number = isinstance(fraction, int | float) and not isinstance(fraction, bool)
    if not number or not 0 <= fraction <= 1:
        raise BadPolicy(
            f"policies: {name}: freeze is {fraction!r}; set a fraction of the layers from 0 to 1, "
            "or their number as freeze_layers"
        )
    return round(fraction * num_layers)
