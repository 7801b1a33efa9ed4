"""Scales of quantised channels (C-M2)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ember.c2c.channel import channel_of, scales_of
from ember.c2c.evaluate import context_of
from ember.records.schema import MEASURED_ON
from ember.studies.c2c.points import Bench
from ember.studies.c2c.ptq.tables import C2C_SCALES
from ember.studies.steps import makes

PASSAGES = 50  # each is packed by itself: a batch of hundreds takes minutes of a GPU


@makes(C2C_SCALES)
def measure_scales(
    *,
    sharer: str | Path,
    receiver: str | Path,
    fuser: str | Path,
    questions,
    points: Sequence[Mapping],
    world_seed: int,
    batch_size: int,
    limit: int | None,
    runtime: Mapping,
) -> list[dict]:
    """Rows of C2C_SCALES: the scales of the test split's first `PASSAGES` passages."""
    models = (sharer, receiver, fuser)
    bench = Bench.of(models, questions, "test", "ptq", world_seed, batch_size, limit, runtime)
    source, about = bench.sources[0], {c.name: bench.about[c.name] for c in MEASURED_ON}
    context = context_of(bench.pair, bench.passages())
    rows = []
    for point in points:
        channel = channel_of(point, bench.pair.fuser)
        chosen = channel.choose(source, context)[:PASSAGES]
        payloads = [channel.payload(source, chosen, item) for item in range(len(chosen))]
        for place, layer in enumerate(source.layers):
            for kv in ("keys", "values"):
                found = [scales_of(getattr(one, kv)[place]) for one in payloads]
                if found[0] is None:
                    continue
                rows.append(
                    {
                        "world": world_seed,
                        "point": point["point"],
                        "layer": layer,
                        "kv": kv,
                        "passages": len(found),
                        "scales": found[0].numel(),
                        **histogram(torch.cat(found)),
                        **about,
                    }
                )
    return rows


def histogram(scales: Tensor) -> dict:
    """Least, greatest, mean, and counts by powers of two; scales of 0 stand in the lowest bin."""
    scales = scales.double().cpu()
    powers = scales[scales > 0].log2().floor()
    low, high = (int(powers.min()), int(powers.max())) if len(powers) else (0, 0)
    counts = torch.histc(powers.float(), high - low + 1, low - 0.5, high + 0.5).long()
    counts[0] += int((scales == 0).sum())
    return {
        "scale_min": scales.min().item(),
        "scale_max": scales.max().item(),
        "scale_mean": scales.mean().item(),
        "edges": [float(edge) for edge in range(low, high + 2)],
        "counts": counts.tolist(),
    }
