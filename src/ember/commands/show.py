"""`ember show`: a table with units and provenance."""

from pathlib import Path

from ember.commands.shared import count


def add(commands) -> None:
    parser = commands.add_parser("show", help="print a table with units and provenance")
    parser.add_argument("file", type=Path, metavar="FILE.parquet")
    parser.add_argument("--rows", type=count, default=20, help="rows to print (default: 20)")
    parser.set_defaults(run=_run)


def _run(options) -> str:
    from ember.records.show import show

    return show(options.file, options.rows)
