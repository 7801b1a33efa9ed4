"""Products with packed weights alone, and decoding with them, beside dense ones in turns (L-2).

A product runs over so many copies of its weight that the last cache does not hold them. Every path
gets the same codes, and its result is compared with those codes' product in float64, so that an
error of the kernel is told apart from that of the format.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from functools import partial
from pathlib import Path

from ember.measure.clock import PhaseClock, repeat
from ember.measure.cost import step_tokens
from ember.measure.progress import Progress
from ember.measure.turns import rounds
from ember.peers.client import PeerFailed
from ember.studies.lowbit.kernels.peers import start_peers, step_weight_bytes, times_of, why_not
from ember.studies.lowbit.kernels.tables import DECODE_RUNS, PRODUCT_RUNS
from ember.studies.measured import blank, on_device
from ember.studies.steps import makes

log = logging.getLogger(__name__)

CHECKED = 1024  # rows of a weight whose products are also computed in float64
OWN = ("kernels", "torch")  # paths that read the weight once
FEW_COPIES = 4  # of paths that write a dense weight first: that is what fills the cache
MOST_COPIES = 4096


@makes(PRODUCT_RUNS, DECODE_RUNS)
def time_kernels(
    *,
    model: str | Path,
    formats: Sequence[str],
    rows: Sequence[int],
    decoded: Sequence[str],
    candidates: Sequence[int],
    prompt_tokens: int,
    new_tokens: int,
    warmup: int,
    repeats: int,
    peers: Mapping[str, Mapping],
    runtime: Mapping,
    threads: int,
) -> tuple[list[dict], list[dict]]:
    """Rows of PRODUCT_RUNS and DECODE_RUNS."""
    import torch

    from ember.measure.roofline import last_cache_bytes, matmul_tflops, read_bandwidth_gb_s

    torch.manual_seed(runtime["seed"])
    torch.set_num_threads(threads)
    device, decoder, about = on_device(model, runtime["device"], runtime["dtype"], named=True)
    about["read_gb_s"] = read_bandwidth_gb_s(device, repeats=20)
    peak = matmul_tflops(device, runtime["dtype"])
    here = {"cache_bytes": last_cache_bytes(device), "tflops": peak} | about
    with torch.inference_mode():
        products = _products(decoder, formats, rows, warmup, repeats, here)
        decoding = _decoding(
            *(decoder, decoded, candidates, prompt_tokens, new_tokens),
            *(warmup, repeats, runtime["seed"], about, peers, model, threads),
        )
    return products, decoding


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
                weight = PACKED[format].of(dense).matrix.lay(dense.is_cuda)
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


def _decoding(
    decoder,
    formats: Sequence[str],
    candidates: Sequence[int],
    prompt_tokens: int,
    new_tokens: int,
    warmup: int,
    repeats: int,
    seed: int,
    about: dict,
    peers: Mapping[str, Mapping],
    model: str | Path,
    threads: int,
) -> list[dict]:
    """Generations by dense and packed decoders of the same weights, and by peers, in turns."""
    import torch

    from ember.backends.sampling import SamplingParams
    from ember.engine.engine import Engine
    from ember.model.packed import quantise_decoder

    kinds: dict[tuple[str, str], object] = {("dense", "dense"): decoder}
    for format in formats:
        layers = _sharing(decoder)
        quantise_decoder(layers, format)
        whole = _sharing(layers)
        quantise_decoder(whole, format, skip=())
        kinds |= {(format, "dense"): layers, (format, "packed"): whole}
        log.info("packed all layers in %s", format)

    def drawn() -> list[int]:
        return torch.randint(decoder.arch.vocab_size, (prompt_tokens,)).tolist()

    capacity = prompt_tokens + new_tokens
    sampling = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True, seed=seed)
    facts, calls, engines = {}, {}, {}
    for (format, head), each in kinds.items():
        engine = Engine(each, capacity=capacity, require_native=True)
        name = f"ember, {format}, {head} head"
        facts[name] = {"engine": "ember", "format": format, "head": head}
        facts[name]["weight_bytes"] = step_weight_bytes(each)
        engines[name] = engine
        calls[name] = partial(_times, engine, drawn, sampling, about["device"])
    setup = {"device": about["device"], "dtype": about["dtype"], "seed": seed, "weights": "random"}
    setup |= {"threads": threads, "capacity": capacity, "candidates": max(candidates)}
    rows = []
    with ExitStack() as stack:
        packed = kinds.get(("nvfp4", "dense"))
        running, said = start_peers(stack, peers, model, packed, setup)
        facts |= said
        calls |= {
            name: partial(times_of, peer, drawn, new_tokens=new_tokens)
            for name, peer in running.items()
        }
        progress = Progress(log, len(candidates) * (warmup + repeats) * len(calls))
        for count in candidates:
            tokens = step_tokens(prompt_tokens, count, new_tokens)
            size = decoder.embed_tokens.weight.element_size()
            what = {"rows": count, "kv_bytes": tokens * decoder.arch.kv_bytes_per_token(size)}
            what |= {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens} | about
            for number, order in rounds(calls, range(-warmup, repeats)):
                for name in order:
                    try:
                        prefill, step = calls[name](candidates=count)
                    except PeerFailed as error:
                        facts[name] |= why_not(error)
                        del calls[name]
                        continue
                    timed = {"repeat": number, "prefill_ms": prefill, "step_ms": step}
                    timed["tokens_per_s"] = count / step * 1e3
                    if name in engines:  # it is chosen for the first prompt
                        facts[name]["backend"] = engines[name].backend.name
                    if number >= 0:
                        rows.append(blank(DECODE_RUNS, **facts[name], **what, **timed))
                    progress.step(f"{count} candidates, {name}")
            gone = [one for name, one in facts.items() if name not in calls]
            rows += [blank(DECODE_RUNS, **what) | one for one in gone]
    return rows


def _times(engine, prompt, sampling, device: str, candidates: int) -> tuple[float, float]:
    """Milliseconds of the prompt's forward, and of a step with sampling."""
    clock = PhaseClock(device)
    engine.generate([prompt()], sampling, num_candidates=candidates, clock=clock)
    times, new_tokens = clock.times_ms(), sampling.max_tokens
    return times["prefill"], times["decode"] / (new_tokens - 1) + times["sampling"] / new_tokens


def _sharing(decoder):
    """Another decoder of the same tensors: what is packed in one of them takes no second copy."""
    tensors = (*decoder.parameters(), *decoder.buffers())
    return deepcopy(decoder, {id(tensor): tensor for tensor in tensors})
