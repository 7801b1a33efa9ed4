"""Prefill with and without the prefix cache, over prompt and prefix lengths (P1-2.3, Sec 4.4).

Both are timed on the same prompt, one right after the other; which goes first alternates. That
tokens are the same is shown in float32, by `check_identity`.
"""

import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ember.measure.clock import PhaseClock
from ember.measure.device import synchronize
from ember.measure.progress import Progress
from ember.measure.turns import rounds, turn
from ember.records.errors import BadRow
from ember.studies.measured import in_order, on_device
from ember.studies.p1.prefix.tables import PREFIX_IDENTITY, PREFIX_SWEEP
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
    numbers = [*range(-warmup, 0), *chosen]
    progress = Progress(log, len(points) * len(numbers))
    for document, order in rounds(points, numbers, rng):
        for n, p in order:
            prompt = streams.prompt(document % len(streams.documents), n, p)
            if document < 0:  # a recorded document must be new to the prefix cache
                prompt[p:] = reversed(prompt[p:])
            # Balanced at every point within a shard, and within a document over its points.
            strategies = turn([True, False], document // shards + shard + points.index((n, p)))
            pair = {}
            for with_cache in strategies:
                strategy = cached[n, p] if with_cache else PlainPrefill()
                pair[with_cache] = time_prefill(engines[n], strategy, prompt, device)
            progress.step(f"prompt {n}, prefix {p}")
            if document >= 0:
                point = {"prompt_tokens": n, "prefix_tokens": p, "document": document}
                point |= {"shard": shard}
                rows += _rows(pair, len(rows), tolerance, point | about)
    return in_order(rows, PREFIX_SWEEP)


@makes(PREFIX_IDENTITY)
def check_identity(
    *,
    model: str | Path,
    workload,
    documents: int,
    prompts: Sequence[int],
    prefix_fractions: Sequence[float],
    budget_mb: float,
    runtime: Mapping,
) -> list[dict]:
    """Rows of PREFIX_IDENTITY: the sweep's points in float32, whatever `runtime` says.

    In half precision the two best logits are often closer than rounding moves them, so that equal
    and unequal first tokens prove little; in float32 each must be equal. Not timed.
    """
    from ember.cache.radix import RadixCache
    from ember.engine.engine import Engine
    from ember.engine.prefill import PlainPrefill, PrefixPrefill
    from ember.studies.p1.workload.make import read_workload

    device, decoder, about = on_device(model, runtime["device"], "float32")
    streams, rows = read_workload(workload), []
    for n in prompts:
        engine = Engine(decoder, capacity=n + 1)
        for p in prefix_lengths(n, prefix_fractions):
            cached = PrefixPrefill(RadixCache(int(budget_mb * 1e6)))
            time_prefill(engine, cached, streams.shared[:p].tolist(), device)
            for document in range(documents):
                prompt = streams.prompt(document, n, p)
                found, logits = time_prefill(engine, cached, prompt, device)
                _, wanted = time_prefill(engine, PlainPrefill(), prompt, device)
                point = {"prompt_tokens": n, "prefix_tokens": p, "document": document}
                reused = {"reused_tokens": found["reused_tokens"]}
                rows.append(point | reused | _compare(logits, wanted) | about)
                if not rows[-1]["tokens_equal"]:
                    log.warning("float32, %s: first tokens differ", point)
    return rows


def prefix_lengths(prompt: int, fractions: Sequence[float]) -> list[int]:
    """Prefix lengths of a prompt length; each leaves at least one token of suffix."""
    return sorted({min(max(1, round(fraction * prompt)), prompt - 1) for fraction in fractions})


def time_prefill(engine, strategy, prompt: list[int], device: str) -> tuple[dict, np.ndarray]:
    """Prefill `prompt` by a strategy of `ember.engine.prefill`, timed by device events on CUDA:
    columns of PREFIX_SWEEP, and logits (V,) of the last token on the CPU."""
    engine.prefill = strategy
    clock = PhaseClock(device)
    synchronize(device)
    done = engine.prefill_prompt(prompt, clock=clock)
    times = clock.times_ms()
    columns = {"reused_tokens": done.cached_tokens, "prefill_ms": sum(times.values())}
    columns |= {f"{phase}_ms": times.get(phase, 0.0) for phase in ("lookup", "store")}
    return columns, done.logits[0].float().cpu().numpy()


def _compare(found: np.ndarray, wanted: np.ndarray) -> dict:
    return {
        "tokens_equal": bool(found.argmax() == wanted.argmax()),
        "max_logit_diff": float(np.abs(found - wanted).max()),
    }


def _rows(pair: dict[bool, tuple], order: int, tolerance: float, about: dict) -> list[dict]:
    """Two rows of PREFIX_SWEEP, from the runs with and without the cache in their order."""
    compared = _compare(pair[True][1], pair[False][1])
    if compared["max_logit_diff"] > tolerance:
        log.warning(
            "prompt %d, prefix %d, document %d: logits differ by %.3g (tolerance %.3g)",
            *(about[name] for name in ("prompt_tokens", "prefix_tokens", "document")),
            compared["max_logit_diff"],
            tolerance,
        )
    return [
        {
            **about,
            "order": order + place,
            "cached": cached,
            "first": place == 0,
            **columns,
            "first_token": int(logits.argmax()),
            **(compared if cached else dict.fromkeys(compared)),
        }
        for place, (cached, (columns, logits)) in enumerate(pair.items())
    ]
