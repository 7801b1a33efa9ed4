"""`ember archive`: an experiment's products with all they rest on, kept by date."""

import argparse
from pathlib import Path


def add(commands) -> None:
    parser = commands.add_parser("archive", help="keep an experiment under reports/<name>_<date>")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "experiment", nargs="?", help="how its products begin, such as p1_fig3", metavar="NAME"
    )
    what.add_argument(
        "--verify", type=Path, metavar="FOLDER", help="compare an archive with its hashes instead"
    )
    parser.add_argument(
        "--golden",
        action="store_true",
        help="validated runs only (code committed, no failed row), under reports/golden",
    )
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--reports", type=Path, default=Path("reports"))
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> str:
    from ember.operations.archive import archive, verify

    if options.verify:
        return f"{options.verify}: {verify(options.verify)} files, each as it was archived"
    kept = archive(options.experiment, options.results, options.reports, golden=options.golden)
    return f"kept in {kept}"
