"""The command line: look at tables, ask products where they come from.

    ember show results/p1_prefill_share.parquet
    ember why results/p1_fig3.png

Errors are one clear message and exit status 1 (2 for a wrong command line).
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ember.records.errors import EmberError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status."""
    options = _parser().parse_args(arguments)
    try:
        print(options.command(options))
        sys.stdout.flush()
    except EmberError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # `ember show … | head`: the reader has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ember", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    show = commands.add_parser("show", help="print a table with units and provenance")
    show.add_argument("file", type=Path, metavar="FILE.parquet")
    show.add_argument("--rows", type=_count, default=20, help="rows to print (default: 20)")
    show.set_defaults(command=_show)

    why = commands.add_parser("why", help="walk back from a product to everything it came from")
    why.add_argument("product", type=Path, metavar="PRODUCT")
    why.set_defaults(command=_why)

    schema = commands.add_parser("config-schema", help="print the JSON Schema of the configuration")
    schema.set_defaults(command=_config_schema)
    return parser


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rows (0, 1, 2, …)")
    return int(text)


def _show(options) -> str:
    from ember.records.show import show

    return show(options.file, options.rows)


def _why(options) -> str:
    from ember.records.provenance import carrier
    from ember.records.trace import format_trace, trace

    text = format_trace(trace(options.product))
    source = carrier(options.product)
    if source != options.product:
        text = f"{options.product} stands beside {source}, which carries its provenance\n\n{text}"
    return text


def _config_schema(options) -> str:
    from ember.config.load import json_schema

    return json_schema().rstrip("\n")


if __name__ == "__main__":
    sys.exit(main())
