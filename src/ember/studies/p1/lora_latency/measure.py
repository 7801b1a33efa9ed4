"""How long it takes to switch adapters, against the memory's limit and PEFT (P1-3.3).

The limit is reading and writing every adapted weight once, at the copy bandwidth measured in the
same run. Implementations follow one another, each with all its operations in every round. A time
runs from the call until the device is done, so what the host needs is in it.
"""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ember.measure.clock import timed
from ember.measure.cost import read_ms, switch_bytes
from ember.measure.device import synchronize
from ember.studies.measured import on_device
from ember.studies.p1.lora_latency.tables import LORA_EXACT, LORA_LATENCY
from ember.studies.steps import makes

log = logging.getLogger(__name__)

ROUND = ("apply", "replace", "reload", "rollback")  # from the base to the base


@makes(LORA_LATENCY, LORA_EXACT)
def time_adapters(
    *, model: str | Path, settings: Mapping, device: str, dtype: str, seed: int
) -> tuple[list[dict], list[dict]]:
    """Rows of LORA_LATENCY and LORA_EXACT for two drawn adapters of q, k, v and o of all layers.

    `settings`: rank, alpha, b_std, warmup, repeats, keeps (what copies of the base to compare) and
    swaps. Without PEFT its rows are skipped with the reason.
    """
    from ember.lora.adapter import ATTENTION, draw_adapter, linears
    from ember.lora.peft import save_adapter
    from ember.measure.roofline import copy_bandwidth_gb_s

    # First, so that the cold switch finds a process that has done nothing else.
    device, decoder, about = on_device(model, device, dtype)
    drawn = {name: settings[name] for name in ("rank", "alpha", "b_std")}
    adapters = [draw_adapter(decoder, **drawn, seed=seed + n) for n in range(2)]
    adapted = [m.weight for (_, name), m in linears(decoder).items() if name in ATTENTION]
    size = {
        "matrices": len(adapted),
        "rank": settings["rank"],
        "bytes": switch_bytes(sum(weight.nbytes for weight in adapted)),
    }
    with tempfile.TemporaryDirectory() as folder:
        folders = [
            save_adapter(adapter, Path(folder) / str(number), arch=decoder.arch)
            for number, adapter in enumerate(adapters)
        ]
        rows, exact = [], []
        for keep in settings["keeps"]:
            bench = Ember(decoder, adapters, folders, keep)
            rows += _measure(bench, settings, device)
            exact.append(_exactness(bench, adapted, settings["swaps"], device))
        try:
            bench = Peft(model, decoder, adapters, folders)
        except ImportError as error:
            rows += _skipped(f"not installed here: {error}")
        else:
            rows += _measure(bench, settings, device)
            exact.append(_exactness(bench, bench.weights, settings["swaps"], device))
    bandwidth = copy_bandwidth_gb_s(device)
    limit = {"copy_gb_s": bandwidth, "limit_ms": read_ms(size["bytes"], bandwidth)}
    whole = {
        "adapted_bytes": size["bytes"] // 2,
        "model_bytes": sum(parameter.nbytes for parameter in decoder.parameters()),
    }
    rows = [row | size | limit | about | {"passes": _passes(row, len(adapted))} for row in rows]
    return rows, [row | whole | about for row in exact]


class Ember:
    """Switches by `ember.lora.merge`, with the adapters prepared."""

    name = "ember"

    def __init__(self, decoder, adapters: Sequence, folders: Sequence[Path], keep: str):
        from ember.lora.merge import Merger

        self.keep, self.folders, self._next = keep, folders, 0
        self.merger = Merger(decoder, keep=keep)
        self.prepared = [self.merger.prepare(adapter) for adapter in adapters]

    def apply(self) -> None:
        self.merger.swap(self.prepared[0])

    def replace(self) -> None:
        other = self.merger.active is self.prepared[0].adapter
        self.merger.swap(self.prepared[other])

    def rollback(self) -> None:
        self.merger.swap(None)

    def reload(self) -> None:
        """From a folder: read, check, move, swap."""
        from ember.lora.peft import load_adapter

        self._next = 1 - self._next
        self.merger.swap(load_adapter(self.folders[self._next]))

    @property
    def kept_bytes(self) -> int:
        return self.merger.base_bytes

    def close(self) -> None:
        self.merger.forget_base()


class Peft:
    """Switches by PEFT's merge_adapter, unmerge_adapter and hotswap_adapter."""

    name, keep, kept_bytes = "peft", "none", 0

    def __init__(self, model, decoder, adapters: Sequence, folders: Sequence[Path]):
        from peft import PeftModel

        from ember.lora.adapter import ATTENTION
        from ember.model.reference import load_peer

        peer = load_peer(model, decoder)
        self.model = PeftModel.from_pretrained(peer, str(folders[0]), adapter_name="first")
        self.model.load_adapter(str(folders[1]), adapter_name="second")
        self.folders, self._next = folders, 0
        layers = self.model.base_model.model.model.layers
        attention = [getattr(layer.self_attn, name) for layer in layers for name in ATTENTION]
        self.weights = [linear.base_layer.weight for linear in attention]

    def apply(self) -> None:
        self.model.merge_adapter()

    def rollback(self) -> None:
        self.model.unmerge_adapter()

    def replace(self) -> None:
        self.model.unmerge_adapter()
        self.model.set_adapter("second" if self.model.active_adapter == "first" else "first")
        self.model.merge_adapter()

    def reload(self) -> None:
        """hotswap_adapter from a folder, merged again."""
        from peft.utils.hotswap import hotswap_adapter

        self._next = 1 - self._next
        self.model.unmerge_adapter()
        hotswap_adapter(
            self.model,
            str(self.folders[self._next]),
            adapter_name=self.model.active_adapter,
            torch_device=str(self.weights[0].device),
        )
        self.model.merge_adapter()

    def close(self) -> None:
        self.model.unmerge_adapter()


def _measure(bench, settings: Mapping, device: str) -> list[dict]:
    """Cold: each operation once, in the order of a first use. Steady: rounds of all of them."""
    import torch

    labels = {"implementation": bench.name, "keep": bench.keep, "status": "ok", "reason": None}
    rows = []
    steady = range(-settings["warmup"], settings["repeats"])
    with torch.no_grad():
        for phase, turn in [("cold", 0), *(("steady", turn) for turn in steady)]:
            for operation in ROUND:
                ms, _ = timed(getattr(bench, operation), device)
                row = {"operation": operation, "phase": phase, "repeat": turn, "ms": ms}
                rows += [labels | row] if turn >= 0 else []
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
            torch._foreach_copy_(list(weights), before)
        if bench.name == "ember":
            bench.close()
    labels = {"implementation": bench.name, "keep": bench.keep, "swaps": swaps}
    return labels | {"exact": exact, "max_abs_diff": largest, "kept_bytes": kept}


def _passes(row: Mapping, matrices: int) -> int:
    """PEFT replaces by a rollback and an apply: each matrix twice."""
    twice = row["implementation"] == "peft" and row["operation"] in ("replace", "reload")
    return 2 * matrices if twice else matrices


def _skipped(reason: str) -> list[dict]:
    labels = {"implementation": "peft", "keep": "none", "repeat": 0, "ms": None}
    return [
        labels | {"operation": operation, "phase": phase, "status": "skipped", "reason": reason}
        for operation in ROUND
        for phase in ("cold", "steady")
    ]
