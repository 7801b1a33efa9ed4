"""`ember guard`: runs a command, or watches a process, and ends it at a memory limit (L-7)."""

import argparse
from pathlib import Path


def add(commands) -> None:
    parser = commands.add_parser("guard", help="run a command under a limit of memory and time")
    parser.add_argument("--host-limit-gb", type=float, help="of the command's processes together")
    parser.add_argument("--gpu-limit-gb", type=float, help="of a GPU, above what it held before")
    parser.add_argument("--wall-secs", type=float, help="the longest run")
    parser.add_argument("--over-secs", type=float, default=0.0, help="how long above (default: 0)")
    parser.add_argument("--poll-secs", type=float, default=0.5, help="between polls (default: 0.5)")
    parser.add_argument("--grace-secs", type=float, default=5.0, help="from SIGTERM to SIGKILL")
    parser.add_argument("--fail-closed", action="store_true", help="end what cannot be observed")
    parser.add_argument("--log", type=Path, metavar="JSON", help="where peaks are written")
    parser.add_argument("--pid", type=int, help="watch this process instead of a command")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    parser.set_defaults(run=_run)


def _run(options) -> tuple[str, int]:
    import json
    import signal
    import sys
    from dataclasses import asdict

    from ember.measure.guard import BadGuard, Limits, run_guarded, watch_process
    from ember.records.atomic import write_text

    gb = {"host": options.host_limit_gb, "gpu": options.gpu_limit_gb}
    limits = Limits(
        gb={name: limit for name, limit in gb.items() if limit is not None},
        over_s=options.over_secs,
        poll_s=options.poll_secs,
        wall_s=options.wall_secs,
        grace_s=options.grace_secs,
        fail_closed=options.fail_closed,
    )
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if (options.pid is None) == (not command):
        raise BadGuard("give a command after --, or --pid, and not both")
    # Who ends the guard ends the command.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    watch = run_guarded(command, limits) if command else watch_process(options.pid, limits)
    if options.log:
        written = {"command": command, "limits": asdict(limits), **asdict(watch)}
        write_text(options.log, json.dumps(written, indent=2) + "\n")
    peaks = ", ".join(f"{name} {gb:.2f} GB" for name, gb in watch.peaks_gb.items())
    return f"guard: {watch.ended} after {watch.seconds:.1f} s; peak {peaks or 'unknown'}", (
        watch.exit_code
    )
