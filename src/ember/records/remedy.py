"""The command that makes a product again, as it has to be typed here.

The Snakefile remembers the options of its run (`remember`), and jobs inherit them: what a message
names then has the run's profile, `--configfile` and `--config`. Elsewhere the scale is read from
the product's path. Standard library only.
"""

import argparse
import json
import os
import shlex
import shutil
import sys
from collections.abc import MutableMapping, Sequence
from pathlib import Path

_RUN = "EMBER_RUN"
_NAMED = (("--profile",), ("--snakefile", "-s"), ("--directory", "-d"))
_LISTS = ("--configfile", "--config")


def remember(arguments: Sequence[str], environ: MutableMapping[str, str] = os.environ) -> None:
    """Keep the options of Snakemake's command line that say which workflow runs, for its jobs."""
    if "--target-jobs" not in arguments:  # a job's own Snakemake inherits those of the run
        environ[_RUN] = json.dumps(run_options(arguments))


def run_options(arguments: Sequence[str]) -> list[str]:
    """Profile, Snakefile, directory and configuration of a command line; --config comes last."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for names in _NAMED:
        parser.add_argument(*names, dest=names[0])
    parser.set_defaults(**{"--profile": os.environ.get("SNAKEMAKE_PROFILE")})
    parser.add_argument("--configfile", "--configfiles", nargs="+", dest="--configfile")
    parser.add_argument("--config", "-C", nargs="*", dest="--config")
    try:
        given = vars(parser.parse_known_args(list(arguments))[0])
    except SystemExit:  # not Snakemake's own command line
        given = {}
    words = []
    for name in (*(names[0] for names in _NAMED), *_LISTS):
        value = given.get(name)
        words += [name, *([value] if isinstance(value, str) else value)] if value else []
    return words


def command(targets: Sequence[str] = (), options: Sequence[str] | None = None) -> str:
    """A Snakemake command with the options of `run_options`, by default those of this run."""
    words = list(options or inherited_options() or [])
    # --configfile and --config take every word that follows them: targets stand before.
    lists = [place for place, word in enumerate(words) if word in _LISTS]
    place = min(lists, default=len(words))
    words[place:place] = map(str, targets)
    return shlex.join([program("snakemake"), *words])


def remake(path: Path | str) -> str:
    """The command that makes the product at `path`."""
    options = inherited_options()
    if options is None:
        parts = Path(path).parts
        below = parts[parts.index("results") + 1 :] if "results" in parts else ()
        options = ["--profile", "local"]
        options += ["--config", f"scale={below[0]}"] if len(below) > 1 else []
    return command([path], options)


def again(path: Path | str) -> str:
    """What to do about a product that cannot be read."""
    return f"delete it and run `{remake(path)}`"


def program(name: str) -> str:
    """A program of this environment as it is called from here: bare where it is on PATH."""
    own = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    if not own.exists() or (found and Path(found).resolve() == own.resolve()):
        return name
    inside = os.path.relpath(own)
    return str(own) if inside.startswith("..") else inside


def inherited_options() -> list[str] | None:
    """The options of the run that this process belongs to, None outside of one."""
    try:
        words = json.loads(os.environ[_RUN])
    except (KeyError, ValueError):
        return None
    return words if isinstance(words, list) else None
