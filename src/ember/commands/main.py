"""The command line: look at tables, ask products where they come from.

Errors are one clear message and exit status 1 (2 for a wrong command line). Every command is a
module with `add`, which declares it, and a function that runs it and imports what it needs.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from ember.records.errors import EmberError

COMMANDS = (
    *("show", "why", "rebuild", "config_schema", "archive", "clean", "c2c", "generate", "estimate"),
    *("doctor", "check", "bench_workflow", "guard", "converse", "train_step", "quantise"),
    *("profile_rollout", "cache_sweep", "memory_budget"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what a terminal cannot show is no reason to fail
            stream.reconfigure(errors="replace")
    options, status = _parser().parse_args(arguments), 0
    try:
        answer = options.run(options)
        text, status = answer if isinstance(answer, tuple) else (answer, 0)
        print(text)
        sys.stdout.flush()
    except EmberError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # `ember show … | head`: the reader has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ember", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        import_module(f"ember.commands.{command}").add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
