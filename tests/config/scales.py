"""The configuration of a scale as the Snakefile merges it, and changes to it."""

import copy
import functools
from pathlib import Path

import yaml

CONFIG = Path(__file__).resolve().parents[2] / "config"
SCALES = sorted(path.stem for path in (CONFIG / "scale").glob("*.yaml"))


def merged(scale: str) -> dict:
    return copy.deepcopy(_merged(scale))


@functools.cache
def _merged(scale: str) -> dict:
    def over(base, top):
        both = isinstance(base, dict) and isinstance(top, dict)
        if not both:
            return top
        return base | {key: over(base.get(key), value) for key, value in top.items()}

    base = yaml.safe_load((CONFIG / "config.yaml").read_text())
    scaled = yaml.safe_load((CONFIG / "scale" / f"{scale}.yaml").read_text())
    return over(base, scaled) | {"scale": scale}


def leaves(node, path=()):
    """(path, value) of everything that is no section: scalars and lists, and items of lists."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, (*path, key))
        return
    yield path, node
    if isinstance(node, list):
        for place, value in enumerate(node):
            yield from leaves(value, (*path, place))


def changed(config: dict, path, value) -> dict:
    """A copy with another value at a path."""
    config = copy.deepcopy(config)
    node = config
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return config


def at(config, path):
    for key in path:
        config = config[key]
    return config


def having(path):
    """Configurations that have something at the path."""
    for scale in SCALES:
        config = merged(scale)
        try:
            at(config, path)
        except (KeyError, IndexError, TypeError):
            continue
        yield config
