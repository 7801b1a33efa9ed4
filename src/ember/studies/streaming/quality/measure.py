"""What every token of every stream costs under an eviction method (S-2, S-3)."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from ember.measure.progress import Progress
from ember.studies.measured import on_device
from ember.studies.steps import makes
from ember.studies.streaming.quality.tables import QUALITY_RUNS
from ember.studies.streaming.streams import check_peaks, cut_streams, structural_tokens

log = logging.getLogger(__name__)


@makes(QUALITY_RUNS)
def measure_quality(
    *,
    model: str | Path,
    long,
    short,
    evaluated: Mapping,
    specs: Sequence[Mapping],
    alone: int,
    runtime: Mapping,
) -> list[dict]:
    """Rows of QUALITY_RUNS: every point of one method on both corpora.

    Methods that treat each stream apart take the first `alone` streams. Full attention reads no
    more than its peak, which is within the trained context.
    """
    import torch

    from ember.streaming.build import build

    check_peaks(model, *(spec["peak"] for spec in specs))
    device, decoder, about = on_device(model, runtime["device"], runtime["dtype"])
    methods = [build(spec) for spec in specs]
    structural = None
    if any("structure" in method.needs for method in methods):
        structural = torch.from_numpy(structural_tokens(model)).to(device)
    rows, progress = [], Progress(log, len(evaluated) * len(methods))
    corpora = {"long": long, "short": short}
    for role, settings in evaluated.items():
        tokens = torch.from_numpy(cut_streams(model, corpora[role], settings)).to(device)
        for method in methods:
            for row in _measured(decoder, tokens, method, structural, alone):
                rows.append({"corpus": role, **row, **about})
            progress.step(f"{role}, {rows[-1]['point']}")
    return rows


def _measured(decoder, tokens, method, structural, alone: int) -> list[dict]:
    from ember.streaming.build import columns
    from ember.streaming.stream import run

    if not method.prunes:
        tokens = tokens[:, : method.peak]
    groups = [one[None] for one in tokens[:alone]] if method.one_row else [tokens]
    rows = []
    for group in groups:
        found = run(decoder, group, method, structural=structural)
        full = found.visible[method.peak - 1 :] if method.prunes else found.visible[-1:]
        for nll in found.nll:
            rows.append(
                {
                    **columns(method),
                    "stream": len(rows),
                    "nll": nll.tolist(),
                    "drop_steps": [step for step, _ in found.drops],
                    "drop_sizes": [size for _, size in found.drops],
                    "visible_min": int(full.min()),
                    "visible_mean": float(full.mean()),
                    "visible_max": int(found.visible.max()),
                    "calls": found.calls,
                    "copied_bytes": found.copied_bytes / group.numel(),
                    "improves": method.improves,
                }
            )
    return rows
