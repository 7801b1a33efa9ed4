"""Two pipeline stages measured: parts on one device, splits with and without overlap, rollouts.

`profile_layers` gives what the prediction starts from, `sweep_splits` what it is compared with
(P1-1.2), `profile_stages` the two-stage rows of the rollout profile (P1-1.1). Points take turns, so
that a machine that slows down biases none.
"""

import logging
import random
from collections.abc import Sequence
from pathlib import Path

from ember.measure.device import resolve
from ember.measure.progress import Progress
from ember.measure.statistics import leading_equal
from ember.measure.turns import rounds
from ember.studies.measured import blank, measured_on
from ember.studies.p1.pipeline.tables import LAYER_COSTS, PIPELINE_EVENTS, PIPELINE_RUNS
from ember.studies.steps import makes

log = logging.getLogger(__name__)

MESSAGES = 50  # messages in a row, to time one
COST_STEPS = 8  # decoding steps in a row, to time one


@makes(LAYER_COSTS)
def profile_layers(
    *,
    model: str | Path,
    context: int,
    generation: int,
    sequences: int,
    micro_batches: int,
    chunks: int,
    cost_repeats: int,
    timeout: float,
    device: str,
    dtype: str,
    seed: int,
) -> list[dict]:
    """Rows of LAYER_COSTS for micro-batches of `sequences / micro_batches` rows.

    Decoding is timed half-way through the generation. Without two devices one skipped row.
    """
    from ember.pipeline.pipeline import Pipeline

    device = resolve(device)
    about, reason = measured_on(model, device, dtype), why_not(model, device)
    rows, tokens = max(1, sequences // micro_batches), -(-context // chunks)
    if reason:
        row = {"phase": "decode", "part": "layer 0", "status": "skipped", "reason": reason}
        size = {"rows": rows, "tokens": 1, "cached": context, "repeat": 0}
        return [blank(LAYER_COSTS, **row, **size, **about)]
    cached = context + generation // 2
    with Pipeline(
        model,
        splits=[1],
        capacity=cached + COST_STEPS + 1,
        device=device,
        dtype=dtype,
        whole=True,
        timeout_s=timeout,
    ) as pipeline:
        hidden = pipeline.arch.hidden_size
        sizes = {
            "prefill": {"rows": rows, "tokens": tokens, "cached": 0},
            "decode": {"rows": rows, "tokens": 1, "cached": cached},
        }
        costs = pipeline.cost(
            rows=rows, context=cached, tokens=tokens, steps=COST_STEPS, repeats=cost_repeats
        )
        shapes = {"prefill": (rows, tokens, hidden), "decode": (rows, hidden)}
        timing = {"count": MESSAGES, "repeats": cost_repeats}
        for phase, shape in shapes.items():
            for part, message in (("hidden", shape), ("tokens", (rows,))):
                labels = {"phase": phase, "part": part}
                for repeat, seconds in enumerate(pipeline.ping(message, message, **timing)):
                    costs.append(labels | {"repeat": repeat, "ms": seconds * 1e3 / 2})
    log.info("%d costs of parts measured", len(costs))
    found = {"status": "ok", "reason": None} | about
    return [cost | sizes[cost["phase"]] | found for cost in costs]


@makes(PIPELINE_RUNS, PIPELINE_EVENTS)
def sweep_splits(
    *,
    model: str | Path,
    workload,
    split_fractions: Sequence[float],
    context: int,
    generation: int,
    sequences: int,
    micro_batches: int,
    chunks: int,
    warmup: int,
    repeats: int,
    timeout: float,
    device: str,
    dtype: str,
    seed: int,
) -> tuple[list[dict], list[dict]]:
    """Rows of PIPELINE_RUNS and of PIPELINE_EVENTS (of each point's first recorded run).

    Every point generates `sequences` completions, greedily; the one-device engine, in the first
    stage's process, gives the tokens they are compared with.
    """
    from ember.backends.sampling import SamplingParams
    from ember.model.folder import read_architecture
    from ember.pipeline.pipeline import Pipeline
    from ember.pipeline.plan import splits_of
    from ember.studies.p1.workload.make import read_workload

    device = resolve(device)
    layers = read_architecture(Path(model)).num_layers
    splits = splits_of(layers, split_fractions)
    points = [(split, mode) for split in splits for mode in ("overlap", "no_overlap")]
    size = {
        "context": context,
        "generation": generation,
        "sequences": sequences,
        "micro_batches": micro_batches,
        "chunks": chunks,
    }
    about = size | measured_on(model, device, dtype)
    if reason := why_not(model, device):
        skipped = {"status": "skipped", "reason": reason}
        points = [*points, (layers, "single")]
        return [_run_row(layers, *point, 0) | about | skipped for point in points], []
    streams = read_workload(workload)
    prompts = [
        streams.prompt((seed + number) % len(streams.documents), context, 0)
        for number in range(sequences)
    ]
    sampling = SamplingParams(temperature=0.0, max_tokens=generation, ignore_eos=True)
    rows, events, expected = [], [], None
    single = (layers, "single")
    progress = Progress(log, len([single, *points]) * (warmup + repeats))
    with Pipeline(
        model,
        splits=splits,
        capacity=context + generation,
        device=device,
        dtype=dtype,
        whole=True,
        timeout_s=timeout,
    ) as pipeline:
        turns = rounds([single, *points], range(-warmup, repeats), random.Random(seed))
        for turn, order in turns:
            if expected is None:  # the first turn begins with the tokens to compare with
                order.sort(key=lambda point: point != single)
            for split, mode in order:
                if mode == "single":
                    run = pipeline.single(prompts, sampling)
                    expected = expected or run.tokens
                else:
                    how = {"micro_batches": micro_batches, "chunks": chunks}
                    how |= {"split": split, "overlap": mode == "overlap"}
                    run = pipeline.generate(prompts, sampling, **how)
                progress.step(f"{_point(layers, split, mode)}{' (warm-up)' if turn < 0 else ''}")
                if turn < 0:
                    continue
                row = _run_row(layers, split, mode, turn) | about
                rows.append(row | _times(run, mode, sequences * generation, expected))
                if turn == 0:
                    names = ("point", "split", "mode", "device", "model", "weights", "evidence")
                    shared = {name: row[name] for name in names}
                    events += [shared | vars(event) for event in run.events]
    rows.sort(key=lambda row: (row["mode"], row["first_layers"], row["repeat"]))
    return rows, events


def why_not(model: str | Path, device: str) -> str | None:
    """Why this model cannot run as two stages here; None where it can."""
    from ember.model.folder import read_architecture
    from ember.pipeline.pipeline import why_no_stages

    if read_architecture(Path(model)).num_layers < 2:
        return "the model has one layer, too few for two stages"
    return why_no_stages(device)


def _point(layers: int, split: int, mode: str) -> str:
    return mode if mode == "single" else f"{split}+{layers - split}-{mode}"


def _run_row(layers: int, split: int, mode: str, repeat: int) -> dict:
    return blank(
        PIPELINE_RUNS,
        point=_point(layers, split, mode),
        split=f"{split}+{layers - split}",
        first_layers=split,
        mode=mode,
        repeat=repeat,
    )


def _times(run, mode: str, tokens: int, expected: list[list[int]]) -> dict:
    from ember.pipeline.timeline import busy_ms, transfer_ms

    shares = [leading_equal(a, b) for a, b in zip(run.tokens, expected, strict=True)]
    times = {
        "total_ms": run.total_ms,
        "tokens_per_s": tokens / run.total_ms * 1e3,
        "tokens_equal_share": sum(shares) / len(shares),
        "forms": "+".join(filter(None, run.forms)),
    }
    if mode == "single":
        return times
    busy = [busy_ms(run.events, stage) for stage in (0, 1)]
    firsts = [e.end_ms for e in run.events if e.kind == "sampling" and e.step == 0]
    return times | {
        "prefill_ms": max(firsts),
        "busy_first_ms": busy[0],
        "busy_last_ms": busy[1],
        "transfer_ms": transfer_ms(run.events),
        "bubble_share": 1 - sum(busy) / (2 * run.total_ms),
    }
