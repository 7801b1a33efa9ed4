"""The command line: look at tables, ask products where they come from.

    ember show results/p1_prefill_share.parquet
    ember why results/p1_fig3.png
    ember archive p1_fig3
    ember bench-workflow --out docs/measured/cpu/bench_workflow.parquet

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

    keep = commands.add_parser("archive", help="keep an experiment under reports/<name>_<date>")
    keep.add_argument("experiment", help="how its products begin, such as p1_fig3")
    keep.add_argument("--results", type=Path, default=Path("results"))
    keep.add_argument("--reports", type=Path, default=Path("reports"))
    keep.set_defaults(command=_archive)

    bench = commands.add_parser("bench-workflow", help="time what a newcomer types, on a clone")
    bench.add_argument("--out", type=Path, default=Path("results/bench_workflow.parquet"))
    bench.add_argument("--repeats", type=_count, default=5, help="of the short steps (default: 5)")
    bench.set_defaults(command=_bench_workflow)
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


def _archive(options) -> str:
    from ember.experiments.archive import archive

    return f"kept in {archive(options.experiment, options.results, options.reports)}"


def _bench_workflow(options) -> str:
    import logging
    import time
    from datetime import UTC, datetime

    from ember.experiments.workflow_cost import time_workflow
    from ember.measure.system import hardware
    from ember.records.provenance import collect, source_root
    from ember.records.schemas.workflow_cost import WORKFLOW_STEPS
    from ember.records.show import show
    from ember.records.tables import write_table

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    began, started = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    rows = time_workflow(source_root(), repeats=options.repeats)
    provenance = collect(
        rule="ember bench-workflow",
        inputs=[],
        outputs=[options.out],
        params={"repeats": options.repeats},
        config={"scale": "tiny"},
        seeds={},
        code=None,
        threads=hardware()["cores"],
        started=started,
        seconds=time.perf_counter() - began,
        hardware=hardware(),
    )
    write_table(options.out, rows, WORKFLOW_STEPS, provenance)
    return show(options.out, len(rows))


if __name__ == "__main__":
    sys.exit(main())
