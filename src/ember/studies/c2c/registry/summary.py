"""The registry: derived from the runs' tables and the provenance inside them (C-R).

A run's key is the hash of all that makes its result what it is, so that two ablations have two
rows however alike their names are; what only says how it came about (code, time, machine) is no
part of it, so that a run made again takes the place of the first.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from math import fsum
from pathlib import Path

from ember.records.errors import BadProvenance
from ember.studies.c2c.point_tables import C2C_POINTS, POINT
from ember.studies.c2c.registry.tables import C2C_REGISTRY
from ember.studies.rows import grouped
from ember.studies.steps import makes

CHECKPOINTS = ("sharer", "receiver", "fuser", "questions")
JOB_ONLY = ("code", "script", "step", "points", "shards")
IDENTITY = (*(column.name for column in POINT), "family", "world", "split", "limited", "dtype")


@makes(C2C_REGISTRY)
def collect_runs(runs: Sequence[str]) -> list[dict]:
    """Rows of C2C_REGISTRY from tables C2C_POINTS."""
    from ember.records.tables import read_rows, table_provenance

    found = []
    for path in [runs] if isinstance(runs, str) else runs:
        made = table_provenance(path)
        if made is None or "arguments" not in made:
            raise BadProvenance(f"{path} does not say what it was made from\nmake it again")
        about = manifest(made)
        for strata in grouped(read_rows(path, C2C_POINTS), *IDENTITY).values():
            found.append(registered(strata, about) | {"results": Path(path).as_posix()})
    return found


def manifest(made: Mapping) -> dict:
    """What the provenance of a job says of all its runs."""
    params, source = made["params"], made.get("source") or {}
    hashes = {entry["path"]: entry["sha256"] for entry in made["inputs"]}
    job, scale = (made.get("job") or {}).get("name", made["rule"]), made["config"].get("scale")
    # Which code and which points of the sweep the job had says nothing of one of them.
    settings = {name: value for name, value in params.items() if name not in JOB_ONLY}
    return {
        **{name: _checkpoint(made["arguments"].get(name), hashes) for name in CHECKPOINTS},
        "alignment": str(params.get("alignment") or "none"),
        "settings": fingerprint(settings),
        "environment": fingerprint(made["versions"]),
        "commit": source.get("commit") or source.get("tree_sha256") or "unknown",
        "dirty": source.get("dirty"),
        "started": made["started"],
        "job_s": made["seconds"],
        "log": f"logs/{scale}/{job}.log",
        "scale": scale,
    }


def registered(strata: Sequence[Mapping], about: Mapping) -> dict:
    """A row of the registry from a point's rows, one for each stratum; not where they lie."""
    first, counts = strata[0], [len(row["correct"]) for row in strata]
    what = {name: about[name] for name in (*CHECKPOINTS, "alignment", "scale")}
    found = {name: first.get(name) for name in C2C_REGISTRY.names} | about
    found |= {
        name: fsum(n * row[name] for n, row in zip(counts, strata, strict=True)) / sum(counts)
        for name in ("measured_bytes", "estimated_bytes", "channel_ms", "fuse_ms")
    }
    found |= {
        "key": fingerprint({name: first[name] for name in IDENTITY} | what),
        "schedule_hash": fingerprint(first["schemes"] or first["scheme"]),
        "n": sum(counts),
        "accuracy": sum(sum(row["correct"]) for row in strata) / sum(counts),
    }
    return {name: found[name] for name in C2C_REGISTRY.names}


def fingerprint(value) -> str:
    """16 hexadecimal digits that tell values of plain data apart, whatever the order of keys."""
    text = json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _checkpoint(paths: str | Sequence[str] | None, hashes: Mapping[str, str]) -> str:
    paths = [paths] if isinstance(paths, str) else list(paths or ())
    return fingerprint([hashes[path] for path in paths]) if paths else "none"
