"""`ember clean`: what failed runs left behind, listed or removed."""

from pathlib import Path


def add(commands) -> None:
    parser = commands.add_parser("clean", help="list or remove what failed and killed runs left")
    parser.add_argument("--directory", type=Path, default=Path(), help="the workflow's folder (.)")
    parser.add_argument("--yes", action="store_true", help="remove it")
    parser.set_defaults(run=_run)


def _run(options) -> str:
    from ember.operations.clean import leftovers, remove

    found = leftovers(options.directory)
    if not found:
        return "no run failed: nothing is left over"
    lines = [f"{left.path}: {left.why}" for left in found]
    if options.yes:
        remove(found, options.directory)
    end = "removed" if options.yes else "`ember clean --yes` removes them"
    return "\n".join([*lines, f"{len(found)} leftovers: {end}"])
