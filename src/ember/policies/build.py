"""Policies from the configuration: plain dicts in, policy objects out. No torch."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields

from ember.policies.kinds import PrefixOnly, Stale, compose
from ember.policies.plan import BadPolicy
from ember.policies.policy import POLICIES, CachePolicy, count
from ember.records.errors import nearest


def build_policies(specs: Sequence[Mapping], num_layers: int) -> list[CachePolicy]:
    """Policies from plain dicts, such as {name: update_locality, freeze: 0.5, share_prefix: true}.

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


def parameters(policy: type[CachePolicy]) -> dict[str, bool]:
    """What a configuration may set of a policy: names, and whether they are needed."""
    own = {field.name: field.default is MISSING for field in fields(policy)[1:]}
    return own | dict.fromkeys(policy.composes, False)


def _build(spec: dict, num_layers: int) -> CachePolicy:
    spec = {key: value for key, value in spec.items() if value is not None}
    name = spec.pop("name", None)
    if name not in POLICIES:
        raise BadPolicy(f"policies: unknown policy {name!r}.{nearest(name, POLICIES)}")
    needed = parameters(POLICIES[name])
    known = [*needed, *(["freeze_layers"] if "freeze" in needed else [])]
    for key in spec:
        if key not in known:
            raise BadPolicy(f"policies: {name} has no {key!r}.{nearest(key, known)}")
    freeze = _freeze(name, spec, num_layers)
    if freeze is not None:
        spec["freeze"] = freeze
    missing = [key for key, needs in needed.items() if needs and key not in spec]
    if missing:
        raise BadPolicy(f"policies: {name} needs {', '.join(missing)}; set it in the policy list")
    own = {key: spec[key] for key in spec.keys() & {f.name for f in fields(POLICIES[name])}}
    parts: list[CachePolicy] = [POLICIES[name](num_layers, **own)]
    if "max_age" in spec.keys() - own.keys():
        parts.append(Stale(num_layers, spec["max_age"]))
    if spec.get("share_prefix"):
        parts.append(PrefixOnly(num_layers))
    return compose(*parts) if len(parts) > 1 else parts[0]


def _freeze(name: str, spec: dict, num_layers: int) -> int | None:
    if "freeze" in spec and "freeze_layers" in spec:
        raise BadPolicy(f"policies: {name} has freeze and freeze_layers; set one of them")
    if "freeze_layers" in spec:
        return count(name, "freeze_layers", spec.pop("freeze_layers"), 0, num_layers)
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
