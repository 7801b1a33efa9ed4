"""Prefill with and without the prefix cache, over prompt and prefix lengths (P1-2.3, Sec 4.4).

`sweep_prefix` times both on the same prompt, one right after the other and in alternating order;
`prefix_savings` turns the pairs into savings with intervals, beside what the operation count
predicts. With causal attention that prediction lies BELOW prefix/prompt: the matrices work once a
token, but a suffix token attends to all tokens before it, so of the attention area the prefix's
(p/n)^2 is saved and not p/n.
"""

import json
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ember.measure.clock import PhaseClock
from ember.measure.cost import prefill_operations
from ember.measure.device import resolve, synchronize
from ember.measure.progress import Progress
from ember.measure.statistics import bootstrap, interval
from ember.measure.turns import rounds
from ember.model.architecture import Architecture
from ember.records.errors import BadRow
from ember.records.tables import read_rows
from ember.studies.p1.prefix.tables import PREFIX_SWEEP
from ember.studies.rows import measured_on, records

log = logging.getLogger(__name__)


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
    import torch

    from ember.cache.radix import RadixCache
    from ember.engine.engine import Engine
    from ember.engine.prefill import PlainPrefill, PrefixPrefill
    from ember.model.checkpoint import load_decoder
    from ember.studies.p1.workload.make import read_workload

    chosen = range(shard, documents, shards)
    if not chosen:
        raise BadRow(
            f"shard {shard} of {shards} has none of the {documents} documents\n"
            "set p1.prefix.shards to at most p1.prefix.documents"
        )
    device = resolve(device)
    streams = read_workload(workload)
    decoder = load_decoder(model, device, getattr(torch, dtype))
    about = measured_on(model, device, dtype)
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
    rows.sort(key=lambda row: tuple(row[name] for name in PREFIX_SWEEP.key))
    return rows


def prefix_lengths(prompt: int, fractions: Sequence[float]) -> list[int]:
    """Prefix lengths of a prompt length; each leaves at least one token of suffix."""
    return sorted({min(max(1, round(fraction * prompt)), prompt - 1) for fraction in fractions})


def join_sweep(shards: Sequence[str | Path], documents: int) -> list[dict]:
    """Rows of all shards in one, in the order of the table's key.

    Raises `BadRow` where a document of 0 … `documents` - 1 is missing at some point.
    """
    rows = [row for path in shards for row in read_rows(path, PREFIX_SWEEP)]
    seen: dict[tuple[int, int], set[int]] = {}
    for row in rows:
        seen.setdefault((row["prompt_tokens"], row["prefix_tokens"]), set()).add(row["document"])
    for (n, p), found in seen.items():
        missing = sorted(set(range(documents)) - found)
        if missing:
            raise BadRow(
                f"prompt {n}, prefix {p}: no measurement of documents {missing[:5]}\n"
                f"delete the shards and run again: rm -r {Path(shards[0]).parent}"
            )
    return sorted(rows, key=lambda row: tuple(row[name] for name in PREFIX_SWEEP.key))


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


def prefix_savings(
    sweep, *, model: str | Path, tolerance: float, seed: int, resamples: int = 2000
) -> list[dict]:
    """Rows of PREFIX_SAVINGS from a PREFIX_SWEEP table: its path, a data frame or rows.

    Savings are 1 - cached / uncached of a document, their median over documents, and a 95 %
    interval by bootstrap over documents, so that the pairs stay together. A first token may differ
    only in a near tie: where the two best logits are no further apart than rounding moves them,
    which half precision and random weights make common. `within_tolerance` says that none differs
    elsewhere, and no logit by more than `tolerance`.
    """
    points: dict[tuple[int, int], dict[int, dict[bool, dict]]] = {}
    for row in records(sweep, PREFIX_SWEEP):
        point = points.setdefault((row["prompt_tokens"], row["prefix_tokens"]), {})
        point.setdefault(row["document"], {})[bool(row["cached"])] = row
    arch = Architecture.from_hf(json.loads((Path(model) / "config.json").read_text()))
    rng = np.random.default_rng(seed)
    rows = []
    for (n, p), documents in sorted(points.items()):
        cached = [pair[True] for pair in documents.values()]
        uncached = [pair[False] for pair in documents.values()]
        cached_ms = np.array([row["prefill_ms"] for row in cached])
        uncached_ms = np.array([row["prefill_ms"] for row in uncached])
        overhead_ms = np.array([row["lookup_ms"] + row["store_ms"] for row in cached])
        saved = 1 - cached_ms / uncached_ms
        low, high = interval(bootstrap(saved, rng, resamples))
        work = prefill_operations(arch, n)
        equal = np.array([row["tokens_equal"] for row in cached], dtype=bool)
        tied = np.array(
            [
                row["top_margin"] <= 2 * other["max_logit_diff"]
                for row, other in zip(uncached, cached, strict=True)
            ]
        )
        difference = float(max(row["max_logit_diff"] for row in cached))
        rows.append(
            {
                "prompt_tokens": n,
                "prefix_tokens": p,
                "documents": len(documents),
                "uncached_ms_median": float(np.median(uncached_ms)),
                "cached_ms_median": float(np.median(cached_ms)),
                "savings": float(np.median(saved)),
                "savings_low": low,
                "savings_high": high,
                "speedup": float(1 / (1 - np.median(saved))),
                "expected_savings": p / n,
                "expected_with_attention": expected_savings(arch, n, p),
                "attention_share": work.attention / work.total,
                "overhead_share": float(np.median(overhead_ms / uncached_ms)),
                "tokens_equal_share": float(equal.mean()),
                "near_ties_share": float(tied.mean()),
                "max_logit_diff": difference,
                "within_tolerance": bool((equal | tied).all()) and difference <= tolerance,
                **{name: cached[0][name] for name in ("device", "dtype", "model", "weights")},
                "evidence": "measured",
            }
        )
    return rows


def expected_savings(arch: Architecture, tokens: int, reused: int) -> float:
    """Fraction of a prefill's operations that reuse of `reused` tokens saves."""
    whole = prefill_operations(arch, tokens).total
    return 1 - prefill_operations(arch, tokens, reused).total / whole
