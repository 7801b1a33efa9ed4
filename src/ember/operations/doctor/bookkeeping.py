"""What Snakemake and killed jobs leave in a working folder: records and locks."""

import ast
import base64
import json
import os
from pathlib import Path

from ember.records.remedy import run_options


def recorded_params(folder: Path, path: str) -> list | None:
    """The parameters that Snakemake wrote down of the job that made `path`; None if unknown."""
    try:
        record = json.loads((folder / ".snakemake" / "metadata" / encoded(path)).read_text("utf-8"))
        found = [ast.literal_eval(text) for text in record.get("params") or []]
    except (OSError, ValueError, SyntaxError, AttributeError, TypeError):
        return None
    return json.loads(json.dumps(found, default=str))


def incomplete(folder: Path, path: str) -> bool:
    """Whether Snakemake marked `path` as being made, and its job did not report an end."""
    return (folder / ".snakemake" / "incomplete" / encoded(path)).is_file()


def encoded(path: str, limit: int = 255) -> Path:
    """Snakemake's name for the record of a file."""
    # Names longer than a file name may be are cut, and all parts but the last begin with @.
    text = base64.urlsafe_b64encode(path.encode()).decode()
    parts = [text[at : at + limit - 1] for at in range(0, len(text), limit - 1)]
    return Path(*(f"@{part}" for part in parts[:-1]), parts[-1])


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
        words, cwd = process.info["cmdline"] or [], process.info["cwd"] or "/"
        if process.info["pid"] not in mine and _runs_workflow(words):
            options = run_options(words)
            named = options[options.index("--directory") + 1] if "--directory" in options else ""
            if folder.resolve() in (Path(cwd).resolve(), Path(cwd, named).resolve()):
                found.append(process.info["pid"])
    return sorted(found)


def _runs_workflow(words: list[str]) -> bool:
    program = any(Path(word).name == "snakemake" for word in words[:3])
    asks = {"-n", "--dry-run", "--dryrun", "--unlock", "--lint", "--version", "--help"}
    return program and not asks.intersection(words)
