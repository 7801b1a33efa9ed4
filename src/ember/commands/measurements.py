"""Measurements of one model directory, as commands: prompts are random ids, answers are tables.

What the workflow measures on its own models and text, on any model and any lengths (P1-1.5).
"""

from collections.abc import Sequence
from pathlib import Path

from ember.records.schema import Schema

Table = tuple[list[dict], Schema]


def rollout_times(
    *,
    model: Path,
    contexts: Sequence[int],
    generations: Sequence[int],
    repeats: int,
    warmup: int,
    device: str,
    dtype: str,
    seed: int,
) -> Table:
    """Rows of PREFILL_SHARE at every context x generation."""
    from ember.studies.p1.profile.measure import profile_rollout
    from ember.studies.p1.profile.summary import prefill_share
    from ember.studies.p1.profile.tables import PREFILL_SHARE
    from ember.studies.p1.workload.make import make_workload

    profile = profile_rollout(
        model=model,
        workload=make_workload(model=model, documents=repeats, tokens=max(contexts), seed=seed),
        contexts=contexts,
        generations=generations,
        warmup=warmup,
        repeats=repeats,
        device=device,
        dtype=dtype,
        seed=seed,
    )
    rows = prefill_share([row for row in profile if row["status"] == "ok"])
    return rows, PREFILL_SHARE


def cache_savings(
    *,
    model: Path,
    prompts: Sequence[int],
    prefix_fractions: Sequence[float],
    documents: int,
    warmup: int,
    budget_mb: float,
    tolerance: float,
    device: str,
    dtype: str,
    seed: int,
) -> Table:
    """Rows of PREFIX_SAVINGS at every prompt length x shared prefix."""
    from ember.studies.p1.prefix.measure import sweep_prefix
    from ember.studies.p1.prefix.summary import prefix_savings
    from ember.studies.p1.prefix.tables import PREFIX_SAVINGS
    from ember.studies.p1.workload.make import make_workload

    sweep = sweep_prefix(
        model=model,
        workload=make_workload(model=model, documents=documents, tokens=max(prompts), seed=seed),
        documents=documents,
        prompts=prompts,
        prefix_fractions=prefix_fractions,
        warmup=warmup,
        budget_mb=budget_mb,
        tolerance=tolerance,
        device=device,
        dtype=dtype,
        seed=seed,
    )
    return prefix_savings(sweep, model=model, tolerance=tolerance, seed=seed), PREFIX_SAVINGS


def memory_parts(
    *, model: Path, context: int, batch: int, device: str, dtype: str, seed: int
) -> Table:
    """Rows of MEMORY_BUDGET: weights, KV, activations, gradients, optimizer."""
    from ember.studies.p1.memory.measure import memory_budget
    from ember.studies.p1.memory.tables import MEMORY_BUDGET

    rows = memory_budget(
        model=model, context=context, batch=batch, device=device, dtype=dtype, seed=seed
    )
    return rows, MEMORY_BUDGET
