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
from ember.studies.p1.prefix.tables import PREFIX_SAVINGS, PREFIX_SWEEP
from ember.studies.rows import grouped, records
from ember.studies.steps import makes


@makes(PREFIX_SWEEP)
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
    return in_order(rows, PREFIX_SWEEP)


@makes(PREFIX_SAVINGS)
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
    points = grouped(in_order(records(sweep, PREFIX_SWEEP), PREFIX_SWEEP), *PREFIX_SWEEP.key[:2])
    arch = read_architecture(model)
    rng = np.random.default_rng(seed)
    rows = []
    for (n, p), runs in points.items():
        cached = [row for row in runs if row["cached"]]
        uncached = [row for row in runs if not row["cached"]]
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
                "documents": len(cached),
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
