"""Sinks: attention mass on the start token, and what a window costs without it (S-0)."""

import logging
from collections.abc import Mapping
from pathlib import Path

from ember.studies.measured import on_device
from ember.studies.steps import makes
from ember.studies.streaming.sinks.tables import SINK_GAP, SINK_MASS
from ember.studies.streaming.streams import check_peaks, cut_streams

log = logging.getLogger(__name__)


@makes(SINK_MASS, SINK_GAP)
def measure_sinks(
    *, model: str | Path, long, short, evaluated: Mapping, peak: int, runtime: Mapping
) -> tuple[list[dict], list[dict]]:
    """Rows of SINK_MASS and SINK_GAP. `long` and `short` are corpora, `evaluated` their streams."""
    import torch

    from ember.streaming.build import build
    from ember.streaming.stream import run

    check_peaks(model, peak)
    device, decoder, about = on_device(model, runtime["device"], runtime["dtype"])
    masses, gaps, corpora = [], [], {"long": long, "short": short}
    for role, settings in evaluated.items():
        tokens = torch.from_numpy(cut_streams(model, corpora[role], settings)).to(device)
        if role == "long":
            masses = [row | about for row in _masses(decoder, tokens)]
        without = run(decoder, tokens, build({"name": "window", "peak": peak}))
        sink = run(decoder, tokens, build({"name": "streaming_llm", "peak": peak, "n_sink": 1}))
        log.info("%s: without %.4f, with a sink %.4f", role, without.nll.mean(), sink.nll.mean())
        for stream, (a, b) in enumerate(zip(without.nll, sink.nll, strict=True)):
            gaps.append(
                {
                    "corpus": role,
                    "stream": stream,
                    "peak": peak,
                    "without_nll": float(a[peak:].mean()),
                    "with_nll": float(b[peak:].mean()),
                    **about,
                }
            )
    return masses, gaps


def _masses(decoder, tokens) -> list[dict]:
    import torch

    from ember.streaming.cache import StreamingCache

    tokens = tokens[:, : decoder.arch.max_positions]
    weight = decoder.embed_tokens.weight
    cache = StreamingCache(decoder.arch, *tokens.shape, weight.device, weight.dtype)
    cache.wants_mass = True
    with torch.inference_mode():
        decoder(tokens, cache=cache)
    # The first query has nothing else to attend to.
    queries = tokens.shape[1] - 1
    found = (cache.mass[..., 0] - 1).mean(1) / queries  # (L, Hq)
    return [
        {
            "layer": layer,
            "mass": float(heads.mean()),
            "head_max": float(heads.max()),
            "queries": queries,
        }
        for layer, heads in enumerate(found)
    ]
