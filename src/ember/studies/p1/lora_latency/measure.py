"""How long it takes to switch adapters, against the memory's limit and PEFT (P1-3.3).

The limit is reading and writing every adapted weight once, at the copy bandwidth measured in the
same run. Implementations take turns, each with all its operations in every round. A time runs from
the call until the device is done, so what the host needs is in it. First switches are those of
fresh processes.
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from ember.measure.clock import timed
from ember.measure.cost import read_ms, switch_bytes
from ember.measure.device import resolve, synchronize
from ember.measure.progress import Progress
from ember.measure.turns import rounds
from ember.studies.measured import blank, in_order, in_process, measured_on, on_device
from ember.studies.p1.lora_latency import process
from ember.studies.p1.lora_latency.switchers import Ember, Peft
from ember.studies.p1.lora_latency.tables import LORA_EXACT, LORA_FIRST, LORA_LATENCY, SWITCHES
from ember.studies.steps import makes

log = logging.getLogger(__name__)


@makes(LORA_LATENCY, LORA_EXACT)
def time_adapters(
    *, model: str | Path, settings: Mapping, device: str, dtype: str, seed: int
) -> tuple[list[dict], list[dict]]:
    """Rows of LORA_LATENCY and LORA_EXACT for two drawn adapters of q, k, v and o of all layers.

    `settings`: rank, alpha, b_std, warmup, repeats, keeps (what copies of the base to compare) and
    swaps. Without PEFT its rows are skipped with the reason.
    """
    from ember.lora.adapter import ATTENTION, linears
    from ember.measure.roofline import copy_bandwidth_gb_s
    from ember.model.reference import load_peer

    device, decoder, about = on_device(model, device, dtype)
    adapted = [m.weight for (_, name), m in linears(decoder).items() if name in ATTENTION]
    size = {
        "matrices": len(adapted),
        "rank": settings["rank"],
        "bytes": switch_bytes(sum(weight.nbytes for weight in adapted)),
    }
    with _drawn(decoder, settings, seed) as folders:
        benches = {f"ember, {keep}": Ember(decoder, folders, keep) for keep in settings["keeps"]}
        reason = _no_peft()
        if reason is None:
            benches["peft"] = Peft(load_peer(model, decoder), folders)
        for bench in benches.values():
            bench.prepare()
            bench.prepare()
        rows = _steady(benches, adapted, settings, device)
        exact = [
            _exactness(bench, getattr(bench, "weights", adapted), settings["swaps"], device)
            for bench in benches.values()
        ]
    rows += _skipped(LORA_LATENCY, reason, repeat=0, place=0) if reason else []
    bandwidth = copy_bandwidth_gb_s(device)
    limit = {"copy_gb_s": bandwidth, "limit_ms": read_ms(size["bytes"], bandwidth)}
    whole = {
        "adapted_bytes": size["bytes"] // 2,
        "model_bytes": sum(parameter.nbytes for parameter in decoder.parameters()),
    }
    rows = [row | size | limit | about | {"passes": _passes(row, len(adapted))} for row in rows]
    return rows, [row | whole | about for row in exact]


@makes(LORA_FIRST)
def time_first(
    *, model: str | Path, settings: Mapping, device: str, dtype: str, seed: int
) -> list[dict]:
    """Rows of LORA_FIRST: processes of their own, each a model's first adapter (base kept on the
    device) and the switches after it.

    `settings`: rank, alpha, b_std and the number of processes of each kind. Where kernels are
    compiled, one process begins with an empty cache of Triton's on disk and the next finds what
    it left.
    """
    import torch

    from ember.model.decoder import Decoder
    from ember.model.folder import read_architecture

    device, model = resolve(device), Path(model).resolve()
    about, count = measured_on(model, device, dtype), settings["processes"]
    reason = _no_peft()
    kinds = ["ember"] if reason else ["ember", "peft"]
    kernels = device.startswith("cuda") and find_spec("triton") is not None
    caches = {"ember": ("cold", "warm") if kernels else ("none",), "peft": ("none",)}
    rows = [row | about for row in _skipped(LORA_FIRST, reason, disk_cache="none", process=0)]
    progress = Progress(log, count * sum(len(caches[kind]) for kind in kinds))
    with torch.device("meta"):  # adapters are drawn by shapes alone
        shapes = Decoder(read_architecture(model))
    with _drawn(shapes, settings, seed) as folders:
        request = {"model": str(model), "folders": list(map(str, folders))}
        request |= {"device": device, "dtype": dtype}
        for number, order in rounds(kinds, range(count)):
            for kind in order:
                keep = "device" if kind == "ember" else "none"
                labels = {"implementation": kind, "keep": keep, "process": number, **about}
                with tempfile.TemporaryDirectory(prefix="ember-triton-") as folder:
                    for cache in caches[kind]:
                        what = f"a process with {kind}'s first adapter"
                        asked = labels | request
                        found = in_process(process, asked, what, TRITON_CACHE_DIR=folder)
                        labels["disk_cache"] = cache
                        rows += [
                            blank(LORA_FIRST, **labels, operation=part, ms=ms)
                            for part, ms in found.items()
                            if ms is not None
                        ]
                        progress.step(f"{kind}, disk cache {cache}")
    return in_order(rows, LORA_FIRST)


@contextmanager
def _drawn(decoder, settings: Mapping, seed: int) -> Iterator[list[Path]]:
    """Folders of two drawn adapters."""
    from ember.lora.adapter import draw_adapter
    from ember.lora.peft import save_adapter

    drawn = {name: settings[name] for name in ("rank", "alpha", "b_std")}
    with tempfile.TemporaryDirectory() as folder:
        yield [
            save_adapter(
                draw_adapter(decoder, **drawn, seed=seed + number),
                Path(folder) / str(number),
                arch=decoder.arch,
            )
            for number in range(2)
        ]


def _no_peft() -> str | None:
    return None if find_spec("peft") else "PEFT is not installed here"


def _steady(benches: Mapping, weights: Sequence, settings: Mapping, device: str) -> list[dict]:
    """Rounds of all operations, the benches in turns; each ends with the base in the weights."""
    import torch

    rows = []
    with torch.no_grad():
        base = [weight.detach().clone() for weight in weights]
        for turn, order in rounds(benches, range(-settings["warmup"], settings["repeats"])):
            for place, name in enumerate(order):
                bench = benches[name]
                labels = {"implementation": bench.name, "keep": bench.keep, "repeat": turn}
                for operation in SWITCHES:
                    ms, _ = timed(getattr(bench, operation), device)
                    row = {"operation": operation, "place": place, "ms": ms}
                    row |= {"status": "ok", "reason": None}
                    rows += [labels | row] if turn >= 0 else []
                if bench.name == "ember" and bench.keep == "none":
                    # It drifts. Through .data: the others need not take note.
                    torch._foreach_copy_([weight.data for weight in weights], base)
    return rows


def _exactness(bench, weights: Sequence, swaps: int, device: str) -> dict:
    """Ends with the base back; the bench cannot be used any more."""
    import torch

    with torch.no_grad():
        before = [weight.detach().clone() for weight in weights]
        bench.apply()
        kept = bench.kept_bytes
        for _ in range(swaps):
            bench.replace()
        bench.rollback()
        synchronize(device)
        pairs = list(zip(weights, before, strict=True))
        exact = all(torch.equal(now.view(torch.uint8), was.view(torch.uint8)) for now, was in pairs)
        largest = max(float((now.float() - was.float()).abs().max()) for now, was in pairs)
        if not exact:  # the next one begins from the base as well
            torch._foreach_copy_([weight.data for weight in weights], before)
        if bench.name == "ember":
            bench.close()
    labels = {"implementation": bench.name, "keep": bench.keep, "swaps": swaps}
    return labels | {"exact": exact, "max_abs_diff": largest, "kept_bytes": kept}


def _passes(row: Mapping, matrices: int) -> int:
    """PEFT replaces by a rollback and an apply: each matrix twice."""
    twice = row["implementation"] == "peft" and row["operation"] in ("replace", "reload")
    return 2 * matrices if twice else matrices


def _skipped(schema, reason: str | None, **about) -> list[dict]:
    """PEFT's rows where it is not there."""
    operations = () if reason is None else SWITCHES
    about |= {"implementation": "peft", "keep": "none", "status": "skipped", "reason": reason}
    return [blank(schema, **about, operation=operation) for operation in operations]
