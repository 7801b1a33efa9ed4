"""One load of a model, timed in a process: `python -m ember.studies.p1.loading.process JSON`.

The request names a `loader` and `files`, `model` (directory), `gguf`, `device`, `dtype`, whether
the page cache is to be `cold`, and for a first token the `prompt`. The answer is one JSON line.
Imports at the top are light: what a loader needs is imported by it, and timed apart.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ember.measure.overhead import process_age_s
from ember.measure.page_cache import drop, read_through, resident_share
from ember.records.errors import EmberError

TOUCH = 1024  # elements between those that are looked at: at least one in each page


def main(request: dict) -> dict:
    """Times what the request asks for."""
    start_s = process_age_s()
    if "prompt" in request:
        return {"start_s": start_s, **first_token(request)}
    files = [Path(file) for file in request["files"]]
    began = time.perf_counter()
    load = LOADERS[request["loader"]](request)
    import_s = time.perf_counter() - began
    drop(files) if request["cold"] else read_through(files)
    resident = resident_share(files)
    began = time.perf_counter()
    load()
    load_s = time.perf_counter() - began
    return {
        "start_s": start_s,
        "import_s": import_s,
        "load_s": load_s,
        "bytes": sum(file.stat().st_size for file in files),
        "resident_share": resident,
    }


def first_token(request: dict) -> dict:
    """Imports, load, prefill of the prompt and its first token, by part in seconds."""
    read_through(request["files"])
    began = time.perf_counter()
    import torch

    from ember.backends.sampling import SamplingParams
    from ember.engine.engine import Engine
    from ember.measure.clock import PhaseClock
    from ember.measure.device import synchronize
    from ember.model.checkpoint import load_decoder

    imported = time.perf_counter()
    device, prompt = request["device"], request["prompt"]
    decoder = load_decoder(request["model"], device, getattr(torch, request["dtype"]))
    synchronize(device)
    loaded = time.perf_counter()
    engine, clock = Engine(decoder, capacity=len(prompt) + 1), PhaseClock(device)
    engine.generate([prompt], SamplingParams(max_tokens=1, ignore_eos=True), clock=clock)
    synchronize(device)
    done = time.perf_counter()
    prefill_s = clock.times_ms()["prefill"] / 1e3
    return {
        "import_s": imported - began,
        "load_s": loaded - imported,
        "prefill_s": prefill_s,
        "rest_s": done - loaded - prefill_s,  # packing, caches, kernels, sampling
    }


def _read(request: dict) -> Callable[[], object]:
    files = request["files"]
    return lambda: read_through(files)


def _ember(request: dict) -> Callable[[], object]:
    import torch

    from ember.model.checkpoint import load_decoder

    device, dtype = request["device"], getattr(torch, request["dtype"])
    return lambda: _touch(load_decoder(request["model"], device, dtype).parameters(), device)


def _gguf(request: dict) -> Callable[[], object]:
    import torch
    from gguf import GGUFReader

    device, dtype = request["device"], getattr(torch, request["dtype"])

    def load():
        reader = GGUFReader(request["gguf"])
        # The reader maps the file; a copy in the wanted format is what other loaders give.
        tensors = [
            torch.tensor(tensor.data, dtype=dtype, device=device) for tensor in reader.tensors
        ]
        _touch(tensors, device)

    return load


def _transformers(request: dict) -> Callable[[], object]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    # Its model classes are imported when they are asked for.
    AutoModelForCausalLM._model_mapping[type(AutoConfig.from_pretrained(request["model"]))]
    device, dtype = request["device"], getattr(torch, request["dtype"])

    def load():
        model = AutoModelForCausalLM.from_pretrained(request["model"], dtype=dtype).to(device)
        _touch(model.parameters(), device)

    return load


LOADERS = {"read": _read, "ember": _ember, "gguf": _gguf, "transformers": _transformers}


def _touch(tensors, device: str) -> None:
    """Look at each page of the tensors: mapped files are read no sooner."""
    import torch

    from ember.measure.device import synchronize

    with torch.no_grad():
        for tensor in tensors:
            tensor.reshape(-1)[::TOUCH].sum()
    synchronize(device)


if __name__ == "__main__":
    try:
        print(json.dumps(main(json.loads(sys.argv[1]))))
    except EmberError as error:
        sys.exit(str(error).splitlines()[0])
