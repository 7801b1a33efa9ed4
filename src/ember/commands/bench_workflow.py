"""`ember bench-workflow`: what a newcomer waits for, on a clone (docs/workflow.md)."""

from pathlib import Path

from ember.commands.shared import Job, count


def add(commands) -> None:
    parser = commands.add_parser("bench-workflow", help="time what a newcomer types, on a clone")
    parser.add_argument("--out", type=Path, default=Path("results/bench_workflow.parquet"))
    parser.add_argument("--repeats", type=count, default=5, help="of the short steps (default: 5)")
    parser.set_defaults(run=_run)


def _run(options) -> str:
    from ember.records.provenance import source_root
    from ember.records.show import show
    from ember.studies.workflow.cost.measure import time_workflow
    from ember.studies.workflow.cost.tables import WORKFLOW_STEPS

    job = Job("ember bench-workflow", {"repeats": options.repeats}, scale="tiny")
    rows = time_workflow(source_root(), repeats=options.repeats)
    job.write(options.out, rows, WORKFLOW_STEPS)
    return show(options.out, len(rows))
