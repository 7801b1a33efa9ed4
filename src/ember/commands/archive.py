"""`ember archive`: an experiment's products with all they rest on, kept by date."""

from pathlib import Path


def add(commands) -> None:
    parser = commands.add_parser("archive", help="keep an experiment under reports/<name>_<date>")
    parser.add_argument("experiment", help="how its products begin, such as p1_fig3")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--reports", type=Path, default=Path("reports"))
    parser.set_defaults(run=_run)


def _run(options) -> str:
    from ember.operations.archive import archive

    return f"kept in {archive(options.experiment, options.results, options.reports)}"
