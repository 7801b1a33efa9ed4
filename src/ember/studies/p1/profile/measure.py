"""Where a rollout's time goes: prefill, decode, sampling, transfer (P1-1.1, Figure 2's data).

`profile_rollout` times whole rollouts over context x generation; `prefill_share` summarises them.
Points take turns: each repeat visits every point once, in an order drawn anew, so that a machine
that slows down or speeds up in the meantime biases no point against another.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from ember.measure.clock import PhaseClock, timed
from ember.studies.measured import in_turns, on_device
from ember.studies.p1.profile.tables import PHASES, ROLLOUT_PROFILE, profile_row
from ember.studies.steps import makes

log = logging.getLogger(__name__)


@makes(ROLLOUT_PROFILE)
def profile_rollout(
    *,
    model: str | Path,
    workload,
    contexts: Sequence[int],
    generations: Sequence[int],
    warmup: int,
    repeats: int,
    device: str,
    dtype: str,
    seed: int,
) -> list[dict]:
    """Rows of ROLLOUT_PROFILE: `repeats` timed rollouts of batch 1 at each context x generation.

    Every rollout prefills one prompt of the workload and samples (temperature 1) exactly
    `generation` tokens, the first of them from the prefill. Phases are timed by PhaseClock: device
    events on CUDA, wall clock on CPU. Two-stage modes are measured by `profile_stages`.
    """
    from ember.engine.engine import Engine
    from ember.studies.p1.workload.make import read_workload

    device, decoder, about = on_device(model, device, dtype)
    streams = read_workload(workload)
    points = [(context, generation) for context in contexts for generation in generations]
    # A cache of its own size for each point: attention and copies see no slack of a larger one.
    engines = {point: Engine(decoder, capacity=sum(point)) for point in points}
    rows = []
    name = "context {0[0]}, generation {0[1]}".format
    for turn, (context, generation) in in_turns(points, warmup, repeats, seed, name, log):
        prompt = streams.prompt(turn % len(streams.documents), context, 0)
        times = time_rollout(engines[context, generation], prompt, generation, seed, device)
        if turn >= 0:
            rows.append(profile_row("single", context, generation, turn, **times, **about))
    rows.sort(key=lambda row: (row["context"], row["generation"], row["repeat"]))
    return rows


def time_rollout(engine, prompt: list[int], generation: int, seed: int, device: str) -> dict:
    """Phase times in ms of one rollout of `generation` tokens, and its total by the wall clock."""
    from ember.backends.sampling import SamplingParams

    sampling = SamplingParams(temperature=1.0, max_tokens=generation, seed=seed, ignore_eos=True)
    clock = PhaseClock(device)
    total, [[completion]] = timed(lambda: engine.generate([prompt], sampling, clock=clock), device)
    assert len(completion.tokens) == generation, "a profiled rollout must not stop early"
    phases = clock.times_ms()
    times = {f"{phase}_ms": phases.get(phase, 0.0) for phase in PHASES if phase != "total"}
    return times | {"total_ms": total, "tokens_per_s": generation / total * 1e3}
