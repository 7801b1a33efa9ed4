"""`ember estimate`: what a run will take, by earlier jobs (docs/estimate.md)."""

from pathlib import Path

from ember.commands.shared import positive


def add(commands) -> None:
    parser = commands.add_parser("estimate", help="what a run will take, by earlier jobs")
    parser.add_argument("targets", nargs="*", default=["all"], metavar="TARGET")
    parser.add_argument("--profile", default="local", help="local (default) or slurm")
    parser.add_argument("--cores", type=positive, help="in place of the profile's")
    parser.add_argument("--jobs", type=positive, help="in place of the profile's")
    parser.add_argument("--all", action="store_true", help="everything anew, not what is missing")
    parser.add_argument("--directory", type=Path, default=Path(), help="where the workflow runs")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--config", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--configfile", nargs="+", default=[], metavar="FILE")
    parser.set_defaults(run=_run)


def _run(options) -> str:
    import json

    from ember.operations.estimate import estimate, format_estimate
    from ember.operations.plan import Settings

    found = estimate(
        options.targets,
        Settings(options.profile, tuple(options.config), tuple(options.configfile)),
        every=options.all,
        cores=options.cores,
        jobs=options.jobs,
        folder=options.directory,
    )
    return json.dumps(found, indent=2) if options.json else format_estimate(found)
