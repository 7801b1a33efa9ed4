"""Checks a merged configuration and says precisely what is wrong with it.

`load(merged, sources)` returns the typed `Config`, or raises `ConfigError` naming every bad key,
the file it came from and, for a misspelt key or value, the nearest valid one. `sources` is the
ordered list of (name, mapping) that were merged, lowest priority first.
"""

import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml
from pydantic import ValidationError

from ember.config.models import Config
from ember.records.errors import EmberError

Sources = Iterable[tuple[str, Mapping]]


class ConfigError(EmberError):
    """The configuration cannot be used; the message names key, file and remedy."""


def load(merged: Mapping, sources: Sources = ()) -> Config:
    """The typed configuration. Raises `ConfigError` for unknown, missing or ill-typed keys."""
    sources = list(sources)
    try:
        return Config.model_validate(dict(merged))
    except ValidationError as error:
        lines = [_explain(issue, sources) for issue in error.errors(include_url=False)]
        raise ConfigError("configuration: " + "\n  ".join(dict.fromkeys(lines))) from None


def with_types(merged: Mapping, overrides: Mapping) -> dict:
    """`merged` with the scalars of the command line typed as YAML.

    Snakemake hands on `--config 'p1={profile: {repeats: 3}}'` with "3" as a string.
    """
    typed = dict(merged)
    for key, value in overrides.items():
        if isinstance(value, Mapping) and isinstance(typed.get(key), Mapping):
            typed[key] = with_types(typed[key], value)
        else:
            typed[key] = _typed(value)
    return typed


def _typed(value):
    if isinstance(value, str):
        return yaml.safe_load(value)
    if isinstance(value, Mapping):
        return {key: _typed(item) for key, item in value.items()}
    return [_typed(item) for item in value] if isinstance(value, list) else value


def check_scale(scale: object, folder: Path) -> Path:
    """The file of a scale. Raises `ConfigError` naming the nearest scale that exists."""
    known = sorted(path.stem for path in Path(folder).glob("*.yaml"))
    if scale in known:
        return Path(folder) / f"{scale}.yaml"
    raise ConfigError(
        f"unknown scale {scale!r}.{_nearest(str(scale), known)} "
        f"Choose one of {', '.join(known)} with --config scale=NAME."
    )


def json_schema() -> str:
    """The JSON Schema of the configuration, as committed in workflow/schemas/."""
    return json.dumps(Config.model_json_schema(), indent=2) + "\n"


def _explain(issue: Mapping, sources: list) -> str:
    path = [part for part in issue["loc"] if not str(part).startswith("function-")]
    key = ".".join(map(str, path)) or "(top level)"
    origin = _origin(path, sources)
    if issue["type"] == "extra_forbidden":
        return f"unknown key {key!r}{origin}.{_nearest(str(path[-1]), _siblings(path[:-1]))}"
    if issue["type"] == "missing":
        return f"missing key {key!r}: set it in the scale's file."
    message = issue["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if issue["type"] == "literal_error":
        choices = issue["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        return f"{key}: {issue['input']!r}{origin} is not valid: {message}." + _nearest(
            str(issue["input"]), choices
        )
    shown = "" if isinstance(issue["input"], Mapping) else f" {issue['input']!r}"
    return f"{key}:{shown}{origin}: {message}."


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" Valid here: {', '.join(known)}." if known else ""


def _origin(path: list, sources: list) -> str:
    for name, mapping in reversed(sources):
        node = mapping
        try:
            for part in path:
                node = node[part]
        except (KeyError, IndexError, TypeError):
            continue
        return f" (in {name})"
    return ""


def _siblings(path: list) -> list[str]:
    """Keys the schema allows in the section at `path`."""
    schema = Config.model_json_schema()
    node = schema
    for part in path:
        node = _resolve(node, schema)
        if isinstance(part, int):
            node = node.get("items", {})
        else:
            node = node.get("properties", {}).get(part) or node.get("additionalProperties", {})
    return sorted(_resolve(node, schema).get("properties", {}))


def _resolve(node: Mapping, schema: Mapping) -> Mapping:
    for option in (node, *node.get("anyOf", ())):
        if "$ref" in option:
            return schema["$defs"][option["$ref"].rsplit("/", 1)[-1]]
    return node
