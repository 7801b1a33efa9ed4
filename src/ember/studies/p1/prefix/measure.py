"""Prefill with and without the prefix cache, over prompt and prefix lengths (P1-2.3, Sec 4.4).

Both are timed on the same prompt, one right after the other and in alternating order.
"""

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ember.measure.clock import PhaseClock
from ember.measure.device import synchronize
from ember.measure.progress import Progress
from ember.measure.turns import rounds
from ember.records.errors import BadRow
from ember.studies.measured import in_order, on_device
from ember.studies.p1.prefix.tables import PREFIX_SWEEP
from ember.studies.steps import makes

log = logging.getLogger(__name__)


@makes(PREFIX_SWEEP)
def sweep_prefix(
    *,
    model: str | Path,
    workload,
    documents: int,
    prompts: Sequence[int],
    prefix_fractions: Sequence[float],
    warmup: int,
    budget_mb: float,
    tolerance: float,
    device: str,
    dtype: str,
    seed: int,
    shard: int = 0,
    shards: int = 1,
) -> list[dict]:
    """Rows of PREFIX_SWEEP: two a document at each prompt length x prefix fraction.

    Each point has a prefix cache of its own, an equal part of `budget_mb`, which holds the shared
    prefix before the first document comes and fills up with suffixes as documents pass. The first
    `warmup` documents of a point are not recorded. A logit difference above `tolerance` is logged.
    Of `shards` this one measures every `shards`-th document from `shard` on, with warm-up, caches
    and order of its own. Raises `BadRow` for a shard without documents.
    """
    from ember.cache.radix import RadixCache
    from ember.engine.engine import Engine
    from ember.engine.prefill import PlainPrefill, PrefixPrefill
    from ember.studies.p1.workload.make import read_workload

    chosen = range(shard, documents, shards)
    if not chosen:
        raise BadRow(
            f"shard {shard} of {shards} has none of the {documents} documents\n"
            "set p1.prefix.shards to at most p1.prefix.documents"
        )
    device, decoder, about = on_device(model, device, dtype)
    streams = read_workload(workload)
    points = [(n, p) for n in prompts for p in prefix_lengths(n, prefix_fractions)]
    budget = int(budget_mb * 1e6 / len(points))
    engines = {n: Engine(decoder, capacity=n + 1) for n in prompts}
    cached = {point: PrefixPrefill(RadixCache(budget)) for point in points}
    for n, p in points:
        time_prefill(engines[n], cached[n, p], streams.shared[:p].tolist(), device)
    rng, rows = random.Random(f"{seed}/{shard}"), []
    turns = [*range(-warmup, 0), *chosen]
    progress = Progress(log, len(points) * len(turns))
    for turn, order in rounds(points, turns, rng):
        for n, p in order:
            prompt = streams.prompt(turn % len(streams.documents), n, p)
            if turn < 0:  # a recorded document must be new to the prefix cache
                prompt[p:] = reversed(prompt[p:])
            cached_first = rng.random() < 0.5
            order = [cached[n, p], PlainPrefill()][:: 1 if cached_first else -1]
            pair = [time_prefill(engines[n], strategy, prompt, device) for strategy in order]
            progress.step(f"prompt {n}, prefix {p}")
            if turn >= 0:
                point = {"prompt_tokens": n, "prefix_tokens": p, "document": turn, "shard": shard}
                rows += _rows(pair, len(rows), cached_first, tolerance, point | about)
    return in_order(rows, PREFIX_SWEEP)


def prefix_lengths(prompt: int, fractions: Sequence[float]) -> list[int]:
    """Prefix lengths of a prompt length; each leaves at least one token of suffix."""
    return sorted({min(max(1, round(fraction * prompt)), prompt - 1) for fraction in fractions})


@dataclass(frozen=True)
class TimedPrefill:
    """One prefill: times in ms, tokens reused, logits (V,) of the last token on the CPU."""

    prefill_ms: float
    lookup_ms: float
    store_ms: float
    reused_tokens: int
    logits: np.ndarray


def time_prefill(engine, strategy, prompt: list[int], device: str) -> TimedPrefill:
    """Prefill `prompt` by a strategy of `ember.engine.prefill`, timed by device events on CUDA."""
    engine.prefill = strategy
    clock = PhaseClock(device)
    synchronize(device)
    done = engine.prefill_prompt(prompt, clock=clock)
    times = clock.times_ms()
    return TimedPrefill(
        prefill_ms=sum(times.values()),
        lookup_ms=times.get("lookup", 0.0),
        store_ms=times.get("store", 0.0),
        reused_tokens=done.cached_tokens,
        logits=done.logits[0].float().cpu().numpy(),
    )


def _rows(
    pair: list[TimedPrefill], order: int, cached_first: bool, tolerance: float, about: dict
) -> list[dict]:
    cached, uncached = pair if cached_first else reversed(pair)
    difference = float(np.abs(cached.logits - uncached.logits).max())
    equal = bool(cached.logits.argmax() == uncached.logits.argmax())
    if difference > tolerance or not equal:
        log.warning(
            "prompt %d, prefix %d, document %d: logits differ by %.3g (tolerance %.3g), first "
            "token %s",
            *(about[name] for name in ("prompt_tokens", "prefix_tokens", "document")),
            difference,
            tolerance,
            "equal" if equal else "not equal",
        )
    return [
        {
            **about,
            "order": order + place,
            "cached": timed is cached,
            "reused_tokens": timed.reused_tokens,
            "prefill_ms": timed.prefill_ms,
            "lookup_ms": timed.lookup_ms,
            "store_ms": timed.store_ms,
            "first_token": int(timed.logits.argmax()),
            "top_margin": _top_margin(timed.logits),
            "tokens_equal": equal if timed is cached else None,
            "max_logit_diff": difference if timed is cached else None,
        }
        for place, timed in enumerate(pair)
    ]


def _top_margin(logits: np.ndarray) -> float:
    second, first = np.partition(logits, -2)[-2:]
    return float(first - second)
