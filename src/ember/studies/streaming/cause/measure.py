"""Losses after prunes with attention's output repaired, and what the prunes took from it."""

import logging
from collections.abc import Mapping
from pathlib import Path

from ember.measure.progress import Progress
from ember.studies.measured import on_device
from ember.studies.steps import makes
from ember.studies.streaming.cause.tables import CAUSE_PARTS, CAUSE_RUNS, PARTS
from ember.studies.streaming.streams import check_peaks, cut_streams

log = logging.getLogger(__name__)


@makes(CAUSE_RUNS, CAUSE_PARTS)
def measure_cause(
    *, model: str | Path, long, streams: Mapping, cause: Mapping, runtime: Mapping
) -> tuple[list[dict], list[dict]]:
    """Rows of CAUSE_RUNS and CAUSE_PARTS, all streams of the long corpus side by side."""
    import torch

    from ember.streaming.cause import prunes

    check_peaks(model, cause["peak"] + cause["compression_interval"])
    device, decoder, about = on_device(model, runtime["device"], runtime["dtype"])
    tokens = torch.from_numpy(cut_streams(model, long, streams)).to(device)
    peak, interval = cause["peak"], cause["compression_interval"]
    about = {"peak": peak, "compression_interval": interval} | about
    progress = Progress(log, (tokens.shape[1] - peak - 1) // interval)
    losses, parts, count = {}, {}, 0
    for prune in prunes(decoder, tokens, peak=peak, n_sink=cause["n_sink"], interval=interval):
        for repair, nll in prune.nll.items():
            losses[repair] = losses.get(repair, 0) + nll.double()
        for part in PARTS:
            parts[part.name] = parts.get(part.name, 0) + getattr(prune, part.name).double()
        count += 1
        progress.step(f"prune at {prune.step}")
    runs = [
        {"repair": repair, "stream": stream, "nll": nll.tolist(), "prunes": count, **about}
        for repair, total in losses.items()
        for stream, nll in enumerate(total / count)
    ]
    layers = [
        {"layer": layer, "stream": stream, **about}
        | {name: float(total[layer, stream]) / count for name, total in parts.items()}
        for layer in range(decoder.arch.num_layers)
        for stream in range(len(tokens))
    ]
    return runs, layers
