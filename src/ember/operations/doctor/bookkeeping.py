"""What Snakemake and killed jobs leave in a working folder: marks, records, locks, temporaries."""

import ast
import base64
import binascii
import itertools
import json
import os
import re
import socket
import zlib
from dataclasses import dataclass
from pathlib import Path

# As `ember.records.atomic` names them: .stem.machine-process-number.tmp.ending
_TEMPORARY = re.compile(r"^\..*\.([0-9a-f]{8})-(\d+)-\d+\.tmp")
_PROBE = re.compile(r"^\.ember-\w+$")  # ember.operations.preflight.check_writable


def incomplete(folder: Path) -> list[str]:
    """Paths that Snakemake marked as being made, and whose jobs did not report an end."""
    root = folder / ".snakemake" / "incomplete"
    names = [_decoded(file.relative_to(root)) for file in sorted(root.rglob("*")) if file.is_file()]
    return [name for name in names if name]


def record(folder: Path, path: str) -> dict | None:
    """What Snakemake wrote down of the job that made `path`; None if nothing."""
    file = folder / ".snakemake" / "metadata" / _encoded(path)
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None


def recorded_params(record: dict) -> list | None:
    """The parameters in a record as plain JSON data, None where they cannot be read back."""
    try:
        return [_plain(ast.literal_eval(text)) for text in record.get("params") or []]
    except (ValueError, SyntaxError):
        return None


def _plain(value):
    return json.loads(json.dumps(value, default=str))


def _encoded(path: str, limit: int = 255) -> Path:
    # Names longer than a file name may be are cut, and all parts but the last begin with @.
    text = base64.urlsafe_b64encode(path.encode()).decode()
    parts = [text[at : at + limit - 1] for at in range(0, len(text), limit - 1)]
    return Path(*(f"@{part}" for part in parts[:-1]), parts[-1])


def _decoded(name: Path) -> str | None:
    text = "".join(part.removeprefix("@") for part in name.parts)
    try:
        return base64.urlsafe_b64decode(text).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None


# Locks and living workflows


def locks(folder: Path) -> list[str]:
    """Lock files of Snakemake in `folder`, relative to it."""
    found = (folder / ".snakemake" / "locks").glob("*.lock")
    return sorted(file.relative_to(folder).as_posix() for file in found)


def workflows(folder: Path) -> list[int]:
    """Processes on this machine that run a workflow in `folder`."""
    import psutil

    mine = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "cwd"]):
        words = process.info["cmdline"] or []
        if process.info["pid"] not in mine and _runs_workflow(words):
            places = [process.info["cwd"], *_directories(words, process.info["cwd"])]
            if any(place and Path(place).resolve() == folder.resolve() for place in places):
                found.append(process.info["pid"])
    return sorted(found)


def _runs_workflow(words: list[str]) -> bool:
    program = any(Path(word).name == "snakemake" for word in words[:3])
    asks = {"-n", "--dry-run", "--dryrun", "--unlock", "--lint", "--version", "--help"}
    return program and not asks.intersection(words)


def _directories(words: list[str], cwd: str | None) -> list[Path]:
    options = ("-d", "--directory")
    named = [after for word, after in itertools.pairwise(words) if word in options]
    return [Path(cwd or "/") / name for name in named]


# Temporaries


@dataclass(frozen=True)
class Temporary:
    """A file that a job was writing. alive: whether its process still runs (None: elsewhere)."""

    process: int
    alive: bool | None


def temporary(name: str) -> Temporary | None:
    """What a file name of `ember.records.atomic` says, None for other names."""
    if _PROBE.match(name):
        return Temporary(0, False)
    if not (match := _TEMPORARY.match(name)):
        return None
    here = f"{zlib.crc32(socket.gethostname().encode()):08x}"
    process = int(match[2])
    return Temporary(process, _alive(process) if match[1] == here else None)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
