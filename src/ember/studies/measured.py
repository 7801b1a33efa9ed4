"""What measurements have in common: the model on its device, the columns of all rows, the turns,
processes of their own."""

import json
import logging
import os
import random
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import ModuleType

from ember.measure.device import device_name, resolve
from ember.measure.progress import Progress
from ember.measure.turns import rounds
from ember.records.errors import EmberError
from ember.records.schema import Schema


class ProcessFailed(EmberError):
    """A process of a measurement that ended with an error; the message has its last line."""


def on_device(model: str | Path, device: str, dtype: str, *, named: bool = False) -> tuple:
    """The device (resolved), the decoder of a model directory on it, and `measured_on` it, or with
    `named` the `machine`."""
    import torch

    from ember.model.checkpoint import load_decoder

    device = resolve(device)
    decoder = load_decoder(model, device, getattr(torch, dtype))
    return device, decoder, (machine if named else measured_on)(model, device, dtype)


def in_turns(
    points: Collection, warmup: int, repeats: int, seed: int, name: Callable, log: logging.Logger
) -> Iterator[tuple]:
    """Each round's number (below 0: warm-up) with each point, in an order drawn for each round.

    `name(point)` is what the log says when the point is done.
    """
    progress = Progress(log, len(points) * (warmup + repeats))
    for turn, order in rounds(points, range(-warmup, repeats), random.Random(seed)):
        for point in order:
            yield turn, point
            progress.step(name(point) + (" (warm-up)" if turn < 0 else ""))


def blank(schema: Schema, **values) -> dict:
    """A row of the schema: null but for the values given and the status ok."""
    status = {"status": "ok"} if "status" in schema.names else {}
    return dict.fromkeys(schema.names) | status | values


def in_order(rows: list[dict], schema: Schema) -> list[dict]:
    """The rows sorted by the schema's key."""
    return sorted(rows, key=lambda row: tuple(row[name] for name in schema.key))


def machine(model: str | Path, device: str, dtype: str) -> dict:
    """What `measured_on` says, and the name of the device (`ember.records.schema.MACHINE`)."""
    return measured_on(model, device, dtype) | {"device_name": device_name(device)}


def measured_on(model: str | Path, device: str, dtype: str) -> dict:
    """What every row measured on a model says: device, dtype, model, weights, evidence."""
    from ember.model.folder import weights_kind

    return {
        "device": device,
        "dtype": dtype,
        "model": Path(model).name,
        "weights": weights_kind(model),
        "evidence": "measured",
    }


def in_process(module: ModuleType, request: Mapping, what: str, **environment: str) -> dict:
    """What a module answers to a request, both JSON, in a process of its own with these variables.

    Raises `ProcessFailed`, which names `what` failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", module.__name__, json.dumps(request)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
        raise ProcessFailed(
            f"{what} failed: {last}\nmake the model again, or run where there is more memory"
        )
    return json.loads(done.stdout.splitlines()[-1])
