"""What selectors have in common, and the time of each stage of selective transfer (C-M8)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ember.c2c.evaluate import context_of
from ember.c2c.fuse import fuse
from ember.c2c.select import SELECTORS, Selection, overlap
from ember.measure.clock import PhaseClock
from ember.records.schema import MEASURED_ON
from ember.studies.c2c.points import Bench
from ember.studies.c2c.selection.tables import C2C_OVERLAP, C2C_STAGE_TIMES
from ember.studies.steps import makes


@makes(C2C_OVERLAP, C2C_STAGE_TIMES)
def measure_selectors(
    *,
    sharer: str | Path,
    receiver: str | Path,
    fuser: str | Path,
    questions,
    modes: Sequence[str],
    proportion: float,
    stages: Sequence[float],
    warmup: int,
    repeats: int,
    world_seed: int,
    batch_size: int,
    limit: int | None,
    runtime: Mapping,
) -> tuple[list[dict], list[dict]]:
    """Rows of C2C_OVERLAP and C2C_STAGE_TIMES, of the test split's first batch of passages."""
    models = (sharer, receiver, fuser)
    bench = Bench.of(models, questions, "test", "selection", world_seed, batch_size, limit, runtime)
    source, about = bench.sources[0], {c.name: bench.about[c.name] for c in MEASURED_ON}
    context = context_of(bench.pair, bench.passages())
    with torch.inference_mode():
        chosen = (Selection(mode, proportion) for mode in modes)
        sets = [one.choose(source, context, one.scores(source, context)) for one in chosen]
        shared = overlap(sets).tolist()
        pairs = [
            {
                "world": world_seed,
                "mode": mode,
                "other": other,
                "proportion": proportion,
                "passages": len(source.tokens),
                "overlap": shared[i][j],
                **about,
            }
            for i, mode in enumerate(modes)
            for j, other in enumerate(modes)
        ]
        own = context.own()
        times = []
        for repeat in range(-warmup, repeats):
            for mode in modes:
                if SELECTORS[mode].oracle:
                    continue
                for share in sorted({1.0, *stages}):
                    for sparse in (True, False) if share == 1 else (True,):
                        row = _timed(bench, source, context, own, mode, share, sparse)
                        said = {"mode": mode, "proportion": share, "sparse_fuse": sparse}
                        times += [{**said, "repeat": repeat, **row, **about}] * (repeat >= 0)
    return pairs, times


def _timed(bench: Bench, source, context, own, mode: str, share: float, sparse: bool) -> dict:
    """Milliseconds of each stage of one batch, one run."""
    clock, inner = PhaseClock(bench.pair.device), PhaseClock(bench.pair.device)
    selection, fuser = Selection(mode, share), bench.pair.fuser
    with clock.phase("score"):
        scores = selection.scores(source, context)
    with clock.phase("select"):
        chosen = selection.choose(source, context, scores)
    phases, hooks = [], []

    def enter(branch, inputs):
        phases.append(inner.phase("project"))
        phases[-1].__enter__()

    def leave(branch, inputs, made):
        phases.pop().__exit__(None, None, None)

    for layer in fuser:
        for branch in (layer.key, layer.value):
            hooks += [branch.register_forward_pre_hook(enter)]
            hooks += [branch.register_forward_hook(leave)]
    try:
        with clock.phase("fuse"):
            fuse(fuser, own, source, chosen, sparse=sparse)
    finally:
        for hook in hooks:
            hook.remove()
    found, project = clock.times_ms(), inner.times_ms().get("project", 0.0)
    return {
        "passages": len(chosen),
        "tokens": int(chosen.sum()),
        "score_ms": found["score"],
        "select_ms": found["select"],
        "project_ms": project,
        "fuse_ms": max(0.0, found["fuse"] - project),
    }
