"""Products with packed weights alone, beside dense ones in turns (L-2).

A product runs over so many copies of its weight that the last cache does not hold them. Every path
gets the same codes, and its result is compared with those codes' product in float64, so that an
error of the kernel is told apart from that of the format.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from ember.measure.clock import repeat
from ember.measure.progress import Progress
from ember.measure.turns import rounds
from ember.studies.lowbit.kernels.setup import prepared, with_best_bandwidth
from ember.studies.lowbit.kernels.tables import PRODUCT_RUNS
from ember.studies.measured import blank
from ember.studies.steps import makes

log = logging.getLogger(__name__)

CHECKED = 1024  # rows of a weight whose products are also computed in float64
OWN = ("kernels", "torch")  # paths that read the weight once
FEW_COPIES = 4  # of paths that write a dense weight first: that is what fills the cache
MOST_COPIES = 4096


@makes(PRODUCT_RUNS)
def time_products(
    *,
    model: str | Path,
    formats: Sequence[str],
    rows: Sequence[int],
    warmup: int,
    repeats: int,
    runtime: Mapping,
    threads: int,
) -> list[dict]:
    """Rows of PRODUCT_RUNS."""
    import torch

    from ember.measure.roofline import last_cache_bytes, matmul_tflops

    device, decoder, about = prepared(model, runtime, threads)
    about["tflops"] = matmul_tflops(device, runtime["dtype"])
    about["cache_bytes"] = last_cache_bytes(device)
    with torch.inference_mode():
        found = _products(decoder, formats, rows, warmup, repeats, about)
    return with_best_bandwidth(found, device)


def _products(decoder, formats, rows, warmup: int, repeats: int, about: dict) -> list[dict]:
    import torch

    from ember.backends.packing import PackedDecoder
    from ember.model.packed import PACKED

    weights = PackedDecoder(decoder)
    layer = weights.layers[0]
    shapes = {name: getattr(layer, name) for name in ("qkv", "o", "gate_up", "down")}
    shapes["head"] = weights.head
    progress, found = Progress(log, len(shapes) * (1 + len(formats))), []
    for product, dense in shapes.items():
        for format in ("dense", *formats):
            packed = format != "dense"
            weight = dense
            if packed:
                weight = PACKED[format].of(dense).matrix.lay(None if dense.is_cuda else "file")
            exact = (next(weight.split(CHECKED)).dense() if packed else dense[:CHECKED]).double()
            reference = dense[:CHECKED].double()
            what = {
                "format": format,
                "product": product,
                "out": len(dense),
                "inner": dense.shape[1],
                "weight_bytes": weight.nbytes,
                "quantisation_error": ((exact - reference).norm() / reference.norm()).item()
                if packed
                else None,
            } | about
            copies = _copies(weight, what)
            for batch in rows:
                x = torch.randn(batch, dense.shape[1], device=dense.device).to(dense.dtype)
                found += _paths(copies, x, exact, what | {"rows": batch}, warmup, repeats)
            progress.step(f"{product}, {format}")
    return found


def _paths(copies: list, x, exact, what: dict, warmup: int, repeats: int) -> list[dict]:
    """Rows of every path for one weight and one x; the paths take turns."""
    from ember.studies.lowbit.kernels.paths import paths_of

    expected = x.double() @ exact.T
    ready, rows = {}, []
    for name, path in paths_of(what["format"], x.device.type).items():
        if what["product"] == "head" and name not in OWN:
            continue  # it takes them seconds, and says nothing that the layers' products do not
        row = what | {"path": name}
        if isinstance(path, str):
            rows.append(blank(PRODUCT_RUNS, **row | {"status": "skipped", "reason": path}))
            continue
        some = copies if name in OWN else copies[:FEW_COPIES]
        call = path(some)
        out = call(x)[:, :CHECKED].double()
        row["kernel_error"] = ((out - expected).norm() / expected.norm()).item()
        row["rotated_bytes"] = len(some) * what["weight_bytes"]
        ready[name] = _recorded(call, x), len(some), row
    for number, order in rounds(ready, range(-warmup, repeats)):
        for name in order:
            call, count, row = ready[name]
            [ms] = repeat(call, warmup=0, repeats=1, device=what["device"])
            if number >= 0:
                each = ms / count
                timed = {"repeat": number, "ms": each, "gb_s": what["weight_bytes"] / each / 1e6}
                rows.append(blank(PRODUCT_RUNS, **row | timed))
    return rows


def _recorded(call: Callable, x) -> Callable[[], object]:
    """The call with x; on CUDA as a graph, or the host's launches would be timed."""
    import torch

    if not x.is_cuda:
        return partial(call, x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call(x)
    return graph.replay


def _copies(weight, what: dict) -> list:
    """Equal weights that together are larger than the last cache."""
    from dataclasses import replace

    count = 1 + int(1.25 * (what["cache_bytes"] or 0)) // weight.nbytes
    count = max(FEW_COPIES, min(count, MOST_COPIES))
    if what["product"] == "head":  # copies would take as much memory as all layers
        count = 1
    if what["format"] == "dense":
        return list(weight.repeat(count, 1, 1))
    codes, scales = weight.codes.repeat(count, 1, 1), weight.scales.repeat(count, 1, 1)
    pairs = zip(codes, scales, strict=True)
    return [replace(weight, codes=codes, scales=scales) for codes, scales in pairs]
