"""How long a model takes to load, and a process to its first token (P1-1.4).

Every load is a process of its own, so that nothing is warm but what is meant to be; loaders take
turns. Cold means that the files' pages were dropped from the page cache just before and that the
system confirms it; where it cannot be confirmed the row says so, where pages stayed it is skipped.
"""

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from ember.measure.device import resolve
from ember.measure.progress import Progress
from ember.measure.turns import rounds
from ember.studies.measured import blank, in_order, in_process, measured_on
from ember.studies.p1.gates.gguf import exported
from ember.studies.p1.loading import process as load_once
from ember.studies.p1.loading.tables import FIRST_TOKEN, LOADING_RUNS
from ember.studies.steps import makes

log = logging.getLogger(__name__)

STAYED = 0.02  # share of pages that may stay in memory in a cold load (the header, say)
PARTS = ("start_s", "import_s", "load_s", "prefill_s", "rest_s")


@makes(LOADING_RUNS, FIRST_TOKEN)
def measure_loading(
    *,
    model: str | Path,
    gguf: str | Path,
    workload,
    prompt_tokens: int,
    repeats: int,
    device: str,
    dtype: str,
    seed: int,
) -> tuple[list[dict], list[dict]]:
    """Rows of LOADING_RUNS and of FIRST_TOKEN, the latter for a prompt of the workload."""
    from ember.studies.p1.workload.make import read_workload

    shared = {"model": model, "repeats": repeats, "device": device, "dtype": dtype}
    runs = time_loading(gguf=gguf, seed=seed, **shared)
    prompt = read_workload(workload).prompt(0, prompt_tokens, 0)
    return runs, time_first_token(prompt=prompt, **shared)


def time_loading(
    *, model: str | Path, gguf: str | Path, repeats: int, device: str, dtype: str, seed: int
) -> list[dict]:
    """Rows of LOADING_RUNS: each loader `repeats` times with a cold and a warm page cache.

    Loaders: `read` (reading the safetensors files, the limit), `ember`, `transformers`, `gguf`.
    Declared random weights are written to a folder first, so that there is something to load;
    `gguf` is the directory that the GGUF gate left.
    """
    device = resolve(device)
    file, reason = exported(gguf)
    with stored(model, device, dtype) as (folder, files):
        shared = {"model": str(folder), "device": device, "dtype": dtype}
        loaders = ("read", "ember", "transformers")
        requests = {name: shared | {"files": files} for name in loaders}
        if file:
            requests["gguf"] = shared | {"files": [str(file)], "gguf": str(file)}
        about = measured_on(model, device, dtype)
        rows = []
        if reason:
            skipped = {"status": "skipped", "reason": reason}
            rows += [_row("gguf", cache, 0, about, **skipped) for cache in ("cold", "warm")]
        progress = Progress(log, 2 * repeats * len(requests))
        for turn, order in rounds(requests, range(seed, seed + repeats)):
            for name in order:
                for cache in ("cold", "warm"):
                    found = _in_process(requests[name] | {"loader": name, "cold": cache == "cold"})
                    rows.append(_timed(name, cache, turn - seed, about, found))
                    progress.step(f"{name}, {cache}")
    return in_order(rows, LOADING_RUNS)


def time_first_token(
    *, model: str | Path, prompt: Sequence[int], repeats: int, device: str, dtype: str
) -> list[dict]:
    """Rows of FIRST_TOKEN: whole processes, from their start to the first token, by part.

    The model's files are in the page cache. Reading them there is not part of the time.
    """
    device = resolve(device)
    about = measured_on(model, device, dtype)
    rows = []
    with stored(model, device, dtype) as (folder, files):
        request = {"model": str(folder), "device": device, "dtype": dtype, "files": files}
        for repeat in range(repeats):
            found = _in_process(request | {"prompt": list(prompt)})
            row = {"repeat": repeat, "prompt_tokens": len(prompt)}
            row |= {part: found[part] for part in PARTS}
            rows.append(row | {"total_s": sum(found[part] for part in PARTS)} | about)
            log.info("first token after %.2f s", rows[-1]["total_s"])
    return rows


@contextlib.contextmanager
def stored(model: str | Path, device: str, dtype: str) -> Iterator[tuple[Path, list[str]]]:
    """A model directory with weight files, and these; declared random weights are written first."""
    from ember.model.folder import weight_files

    model = Path(model).resolve()
    if files := weight_files(model):
        yield model, [str(file) for file in files]
        return
    import torch

    from ember.model.checkpoint import load_decoder, save_decoder

    with tempfile.TemporaryDirectory(prefix="ember-loading-") as name:
        folder = Path(name) / model.name
        save_decoder(load_decoder(model, device, getattr(torch, dtype)), folder, weights="random")
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
        yield folder, [str(file) for file in weight_files(folder)]


def _in_process(request: dict) -> dict:
    """The answer of `load_once` in a fresh process."""
    what = f"loading {request['model']} by {request.get('loader', 'ember')}"
    return in_process(load_once, request, what)


def _timed(loader: str, cache: str, repeat: int, about: dict, found: dict) -> dict:
    share = found["resident_share"]
    row = _row(loader, cache, repeat, about) | {
        "bytes": found["bytes"],
        "import_s": found["import_s"],
        "resident_share": share,
        "verified": share is not None and (share <= STAYED if cache == "cold" else share == 1.0),
    }
    if cache == "cold" and share is not None and share > STAYED:
        stayed = f"{share:.0%} of the files stayed in the page cache"
        return row | {"status": "skipped", "reason": stayed}
    speed = found["bytes"] / found["load_s"] / 1e6
    return row | {"load_s": found["load_s"], "mb_per_s": speed}


def _row(loader: str, cache: str, repeat: int, about: dict, **values) -> dict:
    about = about | {"loader": loader, "cache": cache, "repeat": repeat, "verified": False}
    return blank(LOADING_RUNS, **about | values)
