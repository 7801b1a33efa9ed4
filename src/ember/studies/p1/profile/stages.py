"""The rollout profile on two pipeline stages, with overlap and without (P1-1.1)."""

import logging
from collections.abc import Sequence
from pathlib import Path

from ember.measure.device import resolve
from ember.studies.measured import in_turns, measured_on
from ember.studies.p1.pipeline.measure import why_not
from ember.studies.p1.profile.tables import MODES, ROLLOUT_PROFILE, profile_row
from ember.studies.steps import makes

log = logging.getLogger(__name__)


@makes(ROLLOUT_PROFILE)
def profile_stages(
    *,
    model: str | Path,
    workload,
    contexts: Sequence[int],
    generations: Sequence[int],
    split_fraction: float,
    chunks: int,
    warmup: int,
    repeats: int,
    timeout: float,
    device: str,
    dtype: str,
    seed: int,
) -> list[dict]:
    """Rows of ROLLOUT_PROFILE for the two-stage modes: rollouts of batch 1, as `profile_rollout`.

    One sequence leaves nothing to overlap while decoding; its prompt is prefilled in `chunks`
    pieces, which overlap. A phase's time is that during which a stage was at it. Without two
    devices one skipped row a point, with the reason.
    """
    from ember.backends.sampling import SamplingParams
    from ember.model.folder import read_architecture
    from ember.pipeline.pipeline import Pipeline
    from ember.pipeline.plan import splits_of
    from ember.studies.p1.workload.make import read_workload

    device = resolve(device)
    about = measured_on(model, device, dtype)
    modes = [mode for mode in MODES if mode != "single"]
    points = [(mode, c, g) for mode in modes for c in contexts for g in generations]
    if reason := why_not(model, device):
        return [
            profile_row(*point, 0, **about, status="skipped", reason=reason) for point in points
        ]
    streams = read_workload(workload)
    [split] = splits_of(read_architecture(Path(model)).num_layers, [split_fraction])
    rows = []
    with Pipeline(
        model,
        splits=[split],
        capacity=max(contexts) + max(generations),
        device=device,
        dtype=dtype,
        timeout_s=timeout,
    ) as pipeline:
        name = "{0[0]}, context {0[1]}, generation {0[2]}".format
        for turn, (mode, context, generation) in in_turns(points, warmup, repeats, seed, name, log):
            prompt = streams.prompt(turn % len(streams.documents), context, 0)
            sampling = SamplingParams(
                temperature=1.0, max_tokens=generation, seed=seed, ignore_eos=True
            )
            how = {"split": split, "micro_batches": 1, "chunks": chunks}
            overlap = mode == "two_stage_overlap"
            run = pipeline.generate([prompt], sampling, **how, overlap=overlap)
            if turn >= 0:
                times = _phases(run) | {"tokens_per_s": generation / run.total_ms * 1e3}
                rows.append(profile_row(mode, context, generation, turn, **times, **about))
    rows.sort(key=lambda row: (row["mode"], row["context"], row["generation"], row["repeat"]))
    return rows


def _phases(run) -> dict:
    from ember.pipeline.timeline import covered_ms, transfer_ms

    phases = {
        f"{kind}_ms": covered_ms(run.events, kind) for kind in ("prefill", "decode", "sampling")
    }
    return phases | {"transfer_ms": transfer_ms(run.events), "total_ms": run.total_ms}
