"""The first switches of a process: `python -m ember.studies.p1.lora_latency.process JSON`.

The request names `implementation`, `keep`, `model` (directory), `folders` of two adapters, `device`
and `dtype`. The answer is one JSON line: milliseconds by part, null where there is no such part.
"""

import json
import sys
from importlib import import_module

from ember.measure.clock import timed
from ember.records.errors import EmberError
from ember.studies.p1.lora_latency.switchers import Ember, Peft
from ember.studies.p1.lora_latency.tables import FIRST, SWITCHES


def main(request: dict) -> dict:
    """Times what the request asks for, after the model was loaded."""
    import torch

    from ember.model.checkpoint import load_decoder

    device, ours = request["device"], request["implementation"] == "ember"
    decoder = load_decoder(request["model"], device, getattr(torch, request["dtype"]))
    if not ours:
        from ember.model.reference import load_peer

        peer = load_peer(request["model"], decoder)
    compiled = _heed_compiler() if ours and device.startswith("cuda") else None
    found = {}

    def take(part: str, call):
        found[part], result = timed(call, device)
        return result

    def make():
        if ours:
            return Ember(decoder, request["folders"], request["keep"])
        return Peft(peer, request["folders"])

    with torch.no_grad():
        take("import", lambda: _import(ours, decoder))
        bench = take("make", make)
        take("prepare", bench.prepare)
        take("apply", bench.apply)
        found["first"] = sum(found[part] for part in FIRST)
        found["compile"] = None if compiled is None else sum(compiled)
        bench.prepare()
        for operation in SWITCHES[1:]:
            take(operation, getattr(bench, operation))
    return found


def _import(ours: bool, decoder) -> None:
    """What an adapter's first switch would import."""
    if not ours:
        import_module("peft")
        return
    merge = import_module("ember.lora.merge")
    import_module("ember.lora.peft")
    if merge.kernels_serve(decoder):
        import_module("ember.lora.kernels")


def _heed_compiler() -> list[float] | None:
    """A list that Triton's compiler adds to: milliseconds of each kernel not found on disk."""
    try:
        from triton import knobs
    except ImportError:
        return None
    spent: list[float] = []

    def listen(*, times, cache_hit: bool, **about) -> None:
        spent.append(0.0 if cache_hit else times.total / 1e3)

    knobs.compilation.listener = listen
    return spent


if __name__ == "__main__":
    try:
        print(json.dumps(main(json.loads(sys.argv[1]))))
    except EmberError as error:
        raise SystemExit(str(error).replace("\n", "; ")) from None
