"""What several commands share: kinds of arguments, and tables that are written with provenance."""

import argparse
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

DTYPES = ("float32", "bfloat16", "float16")


def count(text: str) -> int:
    """An argument of 0 or more."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rows (0, 1, 2, …)")
    return int(text)


def positive(text: str) -> int:
    """An argument of 1 or more."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1, 2, …")
    return int(text)


def share(text: str) -> float:
    """An argument between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1")
    return value


def add_measurement(commands, name: str, help: str) -> argparse.ArgumentParser:
    """A command that measures a model directory (P1-1.5), with the arguments of all of them."""
    parser = commands.add_parser(name, help=help)
    parser.add_argument("model", type=Path, metavar="MODEL", help="directory with config.json")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (default)")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="(float32)")
    parser.add_argument("--seed", type=count, default=0)
    parser.add_argument("--out", type=Path, help="where the table goes (default: results/…)")
    return parser


def measured(options, name: str, measure, schema) -> str:
    """The table of `measure`, called with the command's arguments; written and shown."""
    from ember.measure.device import resolve
    from ember.model.folder import read_architecture
    from ember.records.show import show

    read_architecture(options.model)  # before the seconds that torch takes
    params = {key: value for key, value in vars(options).items() if key not in ("run", "out")}
    params["device"] = resolve(options.device)
    out = options.out or Path("results") / f"{name.replace('-', '_')}.parquet"
    told = params | {"model": str(options.model)}
    job = Job(f"ember {name}", told, inputs=[options.model], seeds={"seed": options.seed})
    rows = measure(**params)
    job.write(out, rows, schema)
    return show(out, len(rows))


class Job:
    """A command at work: its clock starts here, and its table says where it comes from."""

    def __init__(self, rule: str, params: dict, *, inputs: Sequence = (), seeds=None, scale=None):
        import logging

        logging.basicConfig(level=logging.INFO, format="%(message)s")
        self.began, self.started = time.perf_counter(), datetime.now(UTC)
        config = {"scale": scale} if scale else {}
        self.about = {"rule": rule, "params": params, "config": config, "seeds": seeds or {}}
        self.inputs = [str(path) for path in inputs]

    def write(self, out: Path, rows: Sequence[dict], schema) -> None:
        """Write the table with its provenance."""
        from ember.measure.system import hardware
        from ember.records.provenance import collect
        from ember.records.tables import write_table

        provenance = collect(
            **self.about,
            inputs=self.inputs,
            outputs=[out],
            code=None,
            threads=hardware()["cores"],
            started=self.started.isoformat(timespec="seconds"),
            seconds=time.perf_counter() - self.began,
            hardware=hardware(),
        )
        write_table(out, rows, schema, provenance)
