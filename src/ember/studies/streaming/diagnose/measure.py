"""Time of every token of single streams, on the eager decoder (S-2)."""

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
    """Rows of LATENCY_RUNS: points take turns on one stream."""
    import torch

    from ember.streaming.build import build, columns, point_id
    from ember.streaming.stream import run

    check_peaks(model, *(spec["peak"] for spec in specs))
    device, decoder, about = on_device(model, runtime["device"], runtime["dtype"])
    wanted = {"streams": 1, "tokens": latency["tokens"], "corpus": corpus}
    tokens = torch.from_numpy(cut_streams(model, long, wanted)).to(device)
    structural = torch.from_numpy(structural_tokens(model)).to(device)
    methods, rows = [build(spec) for spec in specs], []
    turns = (latency["warmup"], latency["repeats"], runtime["seed"])
    for turn, method in in_turns(methods, *turns, point_id, log):
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        found = run(
            decoder,
            tokens,
            method,
            structural=structural,
            timed=True,
            prefill=min(latency["prefill"], method.peak - 1),
        )
        if turn >= 0:
            start = found.prefilled
            rows.append(
                {
                    **columns(method),
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
