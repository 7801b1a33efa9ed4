"""Time of every token of single streams, on the fast path where a method has one (S-2)."""

import gc
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from ember.studies.measured import in_order, in_turns, on_device
from ember.studies.steps import makes
from ember.studies.streaming.diagnose.tables import LATENCY_RUNS
from ember.studies.streaming.streams import check_peaks, cut_streams, structural_tokens

log = logging.getLogger(__name__)


@makes(LATENCY_RUNS)
def time_tokens(
    *,
    model: str | Path,
    long: str | Path,
    specs: Sequence[Mapping],
    latency: Mapping,
    corpus: str,
    runtime: Mapping,
) -> list[dict]:
    """Rows of LATENCY_RUNS: points take turns on one stream, those of each path by themselves.

    What has no fast path runs on the eager decoder, and so does lazy pruning once more with the
    periods of those, so that each is compared with lazy pruning on its own path.
    """
    import torch

    from ember.backends.threads import fastest_threads, restored_threads, use_threads
    from ember.streaming import fast
    from ember.streaming.build import build, columns, point_id
    from ember.streaming.stream import run

    check_peaks(model, *(spec["peak"] for spec in specs))
    device, decoder, about = on_device(model, runtime["device"], runtime["dtype"])
    wanted = {"streams": 1, "tokens": latency["tokens"], "corpus": corpus}
    tokens = torch.from_numpy(cut_streams(model, long, wanted)).to(device)
    structural = torch.from_numpy(structural_tokens(model)).to(device)
    threads = None if device != "cpu" else fastest_threads(lambda: decoder(tokens[:, :1]))
    methods = [build(spec) for spec in specs]
    reasons = {point_id(one): fast.unsupported_reason(one, decoder) for one in methods}
    quick = [one for one in methods if reasons[point_id(one)] is None]
    eager = [one for one in methods if one not in quick]
    periods = {one.compression_interval for one in eager}
    eager += [o for o in quick if o.name == "lazy_prune" and o.compression_interval in periods]
    rows = []
    gc.freeze()  # collections pass over what is loaded by now: a millisecond each, not 80
    for some, way, warmup, repeats in (
        (quick, fast.run, latency["warmup"], latency["repeats"]),
        (eager, run, 0, latency["eager_repeats"]),  # slow, and its first tokens are left out anyway
    ):
        for turn, method in in_turns(some, warmup, repeats, runtime["seed"], point_id, log):
            if device != "cpu":
                gc.collect()  # nothing of the point before
                torch.cuda.reset_peak_memory_stats()
            prefill = min(latency["prefill"], method.peak - 1)
            enough = prefill + latency["skip"] + method.compression_interval
            with restored_threads():
                use_threads(threads or torch.get_num_threads())
                found = way(
                    decoder,
                    tokens if way is fast.run else tokens[:, :enough],
                    method,
                    structural=structural,
                    timed=True,
                    prefill=prefill,
                )
            if turn < 0:
                continue
            start = found.prefilled
            rows.append(
                {
                    **columns(method),
                    "path": found.path,
                    "no_fast_path": reasons[point_id(method)],
                    "repeat": turn,
                    "prefill_ms": found.prefill_ms,
                    "token_ms": found.token_ms[start:].tolist(),
                    "drop_steps": [step - start for step, _ in found.drops if step > start],
                    "peak_memory_mb": None
                    if device == "cpu"
                    else torch.cuda.max_memory_allocated() / 1e6,
                    **about,
                }
            )
    return in_order(rows, LATENCY_RUNS)
