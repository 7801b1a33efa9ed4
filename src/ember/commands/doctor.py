"""`ember doctor`: what in results/ is broken, stale or foreign (docs/doctor.md)."""

import sys
from pathlib import Path


def add(commands) -> None:
    parser = commands.add_parser("doctor", help="say what in results/ is broken, stale or foreign")
    parser.add_argument("results", type=Path, nargs="?", default=Path("results"), metavar="RESULTS")
    parser.add_argument("--profile", default="local", help="of the commands (default: local)")
    parser.add_argument("--config", nargs="+", default=[], metavar="KEY=VALUE", help="as snakemake")
    parser.add_argument("--configfile", nargs="+", default=[], metavar="FILE", help="as snakemake")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


def _run(options) -> tuple[str, int]:
    import json

    from ember.operations.doctor.examine import examine
    from ember.operations.doctor.report import as_text
    from ember.operations.plan import Settings

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    settings = Settings(options.profile, tuple(options.config), tuple(options.configfile))
    report = examine(options.results, settings, say)
    text = json.dumps(report.to_dict(), indent=2) if options.json else as_text(report)
    return text, 0 if report.well else 1
