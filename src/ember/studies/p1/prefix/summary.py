"""What the prefix cache saves, beside what the operation count predicts (P1-2.3).

With causal attention that prediction lies BELOW prefix/prompt: the matrices work once a token, but
a suffix token attends to all tokens before it, so of the attention area the prefix's (p/n)^2 is
saved and not p/n.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ember.measure.cost import prefill_operations
from ember.measure.statistics import bootstrap, interval
from ember.model.architecture import Architecture
from ember.model.folder import read_architecture
from ember.records.errors import BadRow
from ember.records.tables import read_rows
from ember.studies.measured import in_order
from ember.studies.p1.prefix import tables as t
from ember.studies.rows import grouped, records
from ember.studies.steps import makes


@makes(t.PREFIX_SWEEP)
def join_sweep(shards: Sequence[str | Path], documents: int) -> list[dict]:
    """Rows of all shards in one, in the order of the table's key.

    Raises `BadRow` where a document of 0 … `documents` - 1 is missing at some point.
    """
    rows = [row for path in shards for row in read_rows(path, t.PREFIX_SWEEP)]
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
    return in_order(rows, t.PREFIX_SWEEP)


@makes(t.PREFIX_SAVINGS)
def prefix_savings(
    sweep, identity=(), *, model: str | Path, tolerance: float, seed: int, resamples: int = 2000
) -> list[dict]:
    """Rows of PREFIX_SAVINGS from tables PREFIX_SWEEP and PREFIX_IDENTITY: paths, frames or rows.

    Savings are 1 - cached / uncached of a document, their median over documents, and a 95 %
    interval by bootstrap over documents, so that the pairs stay together. Timed runs in half
    precision are held to `tolerance` in their logits; that first tokens are the same is what the
    check in float32 shows (null without that table).
    """
    checked = grouped(records(identity, t.PREFIX_IDENTITY), *t.PREFIX_SWEEP.key[:2])
    arch = read_architecture(model)
    rng = np.random.default_rng(seed)
    rows = []
    for (n, p), (cached, uncached) in _points(sweep).items():
        cached_ms, uncached_ms = _column(cached, "prefill_ms"), _column(uncached, "prefill_ms")
        overhead_ms = _column(cached, "lookup_ms") + _column(cached, "store_ms")
        saved = 1 - cached_ms / uncached_ms
        first = _column(cached, "first").astype(bool)
        low, high = interval(bootstrap(saved, rng, resamples))
        work, expected = prefill_operations(arch, n), expected_savings(arch, n, p)
        difference = float(max(row["max_logit_diff"] for row in cached))
        rows.append(
            {
                "prompt_tokens": n,
                "prefix_tokens": p,
                "documents": len(cached),
                "uncached_ms_median": float(np.median(uncached_ms)),
                "cached_ms_median": float(np.median(cached_ms)),
                "savings": float(np.median(saved)),
                "savings_low": low,
                "savings_high": high,
                "speedup": float(1 / (1 - np.median(saved))),
                "expected_savings": p / n,
                "expected_with_attention": expected,
                "ratio_to_operations": float(np.median(saved)) / expected,
                "ratio_low": low / expected,
                "ratio_high": high / expected,
                "attention_share": work.attention / work.total,
                "overhead_share": float(np.median(overhead_ms / uncached_ms)),
                "cached_first_share": float(first.mean()),
                "order_effect": float(np.median(saved[first]) - np.median(saved[~first]))
                if first.any() and not first.all()
                else None,
                "tokens_equal_share": float(_column(cached, "tokens_equal").mean()),
                "max_logit_diff": difference,
                "within_tolerance": difference <= tolerance,
                **_identity(checked.get((n, p), [])),
                **_about(cached),
            }
        )
    return rows


@makes(t.PREFIX_LOSSES)
def prefix_losses(sweep, *, model: str | Path, seed: int, resamples: int = 2000) -> list[dict]:
    """Rows of PREFIX_LOSSES from a table PREFIX_SWEEP: its path, a data frame or rows.

    The parts of a point add up to its cached prefill. What the suffix takes alone is the uncached
    prefill of a prompt of its length by the same document. Intervals resample documents.
    """
    points, arch = _points(sweep), read_architecture(model)
    rng = np.random.default_rng(seed)
    rows = []
    for (n, p), (cached, uncached) in points.items():
        alone = _alone(points, n - p, [row["document"] for row in cached])
        columns = [_column(uncached, "prefill_ms")]
        columns += [_column(cached, name) for name in ("prefill_ms", "lookup_ms", "store_ms")]
        columns += [] if alone is None else [alone]

        def parts(drawn: np.ndarray, n=n, p=p) -> np.ndarray:
            """(m, documents, columns) to (m, parts)."""
            medians = np.moveaxis(np.median(drawn, axis=1), -1, 0)
            return np.stack(list(_split(arch, n, p, *medians).values()), axis=-1)

        draws = bootstrap(np.stack(columns, axis=-1), rng, resamples, parts)
        names = _split(arch, n, p, *np.ones(len(columns)))
        for step, part in enumerate(names):
            low, high = interval(draws[:, step])
            modelled = part in ("operations", "products", "attention", "suffix")
            rows.append(
                {"prompt_tokens": n, "prefix_tokens": p, "documents": len(cached), "step": step}
                | {"part": part, "ms": float(draws[0, step]), "low": low, "high": high}
                | _about(cached)
                | {"evidence": "modelled" if modelled else "measured"}
            )
    return rows


def _split(arch, n: int, p: int, uncached, cached, lookup, store, alone=None) -> dict:
    """Parts of PREFIX_LOSSES in their order, from times of any shape."""

    def share(tokens: int, reused: int) -> float:
        work = prefill_operations(arch, tokens, reused).total
        return work / prefill_operations(arch, n).total

    parts = {"uncached": uncached, "operations": -uncached * expected_savings(arch, n, p)}
    rest = cached - lookup - store - uncached * share(n, p)
    if alone is None:
        parts["suffix"] = rest
    else:
        parts["products"] = alone - uncached * share(n - p, 0)
        parts["attention"] = rest - parts["products"]
    return parts | {"lookup": lookup, "store": store, "cached": cached}


def _points(sweep) -> dict[tuple[int, int], tuple[list, list]]:
    """Rows with and without the cache, by prompt and prefix, both in the order of documents."""
    rows = in_order(records(sweep, t.PREFIX_SWEEP), t.PREFIX_SWEEP)
    return {
        point: ([row for row in runs if row["cached"]], [row for row in runs if not row["cached"]])
        for point, runs in grouped(rows, *t.PREFIX_SWEEP.key[:2]).items()
    }


def _alone(points, tokens: int, documents: list[int]) -> np.ndarray | None:
    """Uncached prefills of prompts of `tokens`, a document's median; None where there are none."""
    found: dict[int, list[float]] = {}
    for (n, _), (_, uncached) in points.items():
        for row in uncached if n == tokens else ():
            found.setdefault(row["document"], []).append(row["prefill_ms"])
    if not set(documents) <= set(found):
        return None
    return np.array([np.median(found[document]) for document in documents])


def _column(rows: Sequence[dict], name: str) -> np.ndarray:
    return np.array([row[name] for row in rows], dtype=float)


def _identity(rows: Sequence[dict]) -> dict:
    equal, difference = _column(rows, "tokens_equal"), _column(rows, "max_logit_diff")
    return {
        "float32_documents": len(rows) or None,
        "float32_tokens_equal_share": float(equal.mean()) if rows else None,
        "float32_max_logit_diff": float(difference.max()) if rows else None,
    }


def _about(rows: Sequence[dict]) -> dict:
    return {name: rows[0][name] for name in ("device", "dtype", "model", "weights", "evidence")}


def expected_savings(arch: Architecture, tokens: int, reused: int) -> float:
    """Fraction of a prefill's operations that reuse of `reused` tokens saves."""
    whole = prefill_operations(arch, tokens).total
    return 1 - prefill_operations(arch, tokens, reused).total / whole
