"""Checks a merged configuration and says precisely what is wrong with it.

`load(merged, sources, checks)` returns the typed `Config`, or raises `ConfigError` naming every bad
key, the file it came from and, for a misspelt key or value, the nearest valid one. `sources` is the
ordered list of (name, mapping) that were merged, lowest priority first. `checks` look at the typed
configuration for what only the packages above know: their names, shapes and limits.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import yaml
from pydantic import ValidationError

from ember.config.settings import Config
from ember.records.errors import EmberError, nearest

Sources = Iterable[tuple[str, Mapping]]
Problem = tuple[tuple[str | int, ...], str]
"""Where a key stands, and what is wrong with its value."""
Check = Callable[[Config], Iterable[Problem]]


class ConfigError(EmberError):
    """The configuration cannot be used; the message names key, file and remedy."""


def load(merged: Mapping, sources: Sources = (), checks: Iterable[Check] = ()) -> Config:
    """The typed configuration. Raises `ConfigError` for unknown, missing or ill-typed keys, for
    references to what is not there, and for what a check finds."""
    sources = list(sources)
    try:
        config = Config.model_validate(dict(merged))
        lines = []
    except ValidationError as error:
        lines = [_explain(issue, sources) for issue in error.errors(include_url=False)]
    for found in ((_references,), checks):  # checks look up names that are known to be there
        if not lines:
            lines = [
                f"{_key(path)}{_origin(path, sources)}: {problem}"
                for check in found
                for path, problem in check(config)
            ]
    if lines:
        raise ConfigError("configuration: " + "\n  ".join(dict.fromkeys(lines)))
    return config


def unknown(value: object, known: Iterable[str]) -> str | None:
    """What is wrong with a name that is not among those known, with the nearest one."""
    known = sorted(known)
    return None if value in known else f"unknown name {value!r}.{nearest(str(value), known)}"


def _references(config: Config) -> Iterable[Problem]:
    """Names of models and corpora that the configuration does not define."""
    named = [
        (("p1", "model"), config.p1.model, config.models),
        (("p1", "corpus"), config.p1.corpus, config.corpora),
        (("streaming", "model"), config.streaming.model, config.models),
        *(
            (
                ("streaming", study, "model"),
                getattr(config.streaming, study).model or config.streaming.model,
                config.models,
            )
            for study in ("ceiling", "speed")
        ),
        (("streaming", "long", "corpus"), config.streaming.long.corpus, config.corpora),
        (("streaming", "short", "corpus"), config.streaming.short.corpus, config.corpora),
    ]
    lowbit = config.lowbit
    named.append((("lowbit", "model"), lowbit.model, config.models))
    named.append((("lowbit", "arms", "corpus"), lowbit.arms.corpus, config.corpora))
    for key in ("kernels", "quantise", "arms", "memory"):
        name = getattr(lowbit, key).model or lowbit.model
        named.append((("lowbit", key, "model"), name, config.models))
    lists = [(("tokenizer", "corpora"), config.tokenizer.corpora)]
    for name, model in config.models.items():
        if model.training:
            lists.append((("models", name, "training", "corpora"), model.training.corpora))
    for path, names in lists:
        named += [((*path, place), name, config.corpora) for place, name in enumerate(names)]
    for path, name, known in named:
        if wrong := unknown(name, known):
            yield path, wrong


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
        f"unknown scale {scale!r}.{nearest(str(scale), known)} "
        f"Choose one of {', '.join(known)} with --config scale=NAME."
    )


def json_schema() -> str:
    """The JSON Schema of the configuration, as committed in workflow/schemas/."""
    return _compact(_untitled(Config.model_json_schema())) + "\n"


def _untitled(node):
    """Without the titles, which only repeat the names of keys and classes."""
    if isinstance(node, list):
        return [_untitled(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        key: _untitled(value)
        for key, value in node.items()
        if key != "title" or not isinstance(value, str)
    }


def _compact(node, indent: str = "", before: int = 0, width: int = 240) -> str:
    """JSON in which all that fits on a line stands on one, and what does not a line an entry."""
    text = json.dumps(node)
    if len(indent) + before + len(text) < width or not isinstance(node, dict | list):
        return text
    inner = indent + "  "
    if isinstance(node, list):
        items, ends = [_compact(item, inner) for item in node], "[]"
    else:
        keys = {json.dumps(key) + ": ": value for key, value in node.items()}
        items, ends = [key + _compact(node, inner, len(key)) for key, node in keys.items()], "{}"
    return f"{ends[0]}\n{inner}" + f",\n{inner}".join(items) + f"\n{indent}{ends[1]}"


def _key(path: Iterable) -> str:
    return ".".join(map(str, path)) or "(top level)"


def _explain(issue: Mapping, sources: list) -> str:
    path = [part for part in issue["loc"] if not str(part).startswith("function-")]
    if path and path[-1] == "[key]":
        return (
            f"{_key(path[:-2])}: {path[-2]!r} cannot be a name{_origin(path[:-1], sources)}: "
            "take letters, digits, dots, dashes and underscores, at most 64."
        )
    key, origin = _key(path), _origin(path, sources)
    if issue["type"] == "extra_forbidden":
        return f"unknown key {key!r}{origin}.{nearest(str(path[-1]), _siblings(path[:-1]))}"
    if issue["type"] == "missing":
        return f"missing key {key!r}: set it in the scale's file."
    message = issue["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if issue["type"] == "literal_error":
        choices = issue["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        return f"{key}: {issue['input']!r}{origin} is not valid: {message}." + nearest(
            str(issue["input"]), choices
        )
    shown = "" if isinstance(issue["input"], Mapping) else f" {issue['input']!r}"
    return f"{key}:{shown}{origin}: {message}."


def _origin(path: Iterable, sources: list) -> str:
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
