"""A rollout again, under other batch compositions and by other means: equal tokens (P1-4.3)?"""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

from ember.measure.device import device_name, resolve
from ember.studies.measured import measured_on
from ember.studies.p1.consistency.tables import ROLLOUT_CONSISTENCY
from ember.studies.steps import makes

log = logging.getLogger(__name__)

CUTS = {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.02}


@makes(ROLLOUT_CONSISTENCY)
def check_consistency(
    *,
    model: str | Path,
    workload,
    prompts: int,
    candidates: int,
    prompt_tokens: int,
    new_tokens: int,
    rows: int,
    tolerance: float,
    device: str,
    dtype: str,
    seed: int,
) -> list[dict]:
    """Rows of ROLLOUT_CONSISTENCY, each check greedy, at temperature 1, and with every cut.

    Prompts have different lengths, up to `prompt_tokens`; `rows` decode together.
    """
    import torch

    from ember.backends.sampling import SamplingParams
    from ember.model.checkpoint import load_decoder
    from ember.studies.p1.workload.make import read_workload

    device = resolve(device)
    streams = read_workload(workload)
    decoder = load_decoder(model, device, getattr(torch, dtype))
    lengths = [max(1, prompt_tokens * (p + 1) // prompts) for p in range(prompts)]
    asked = [streams.prompt(p, length, 0) for p, length in enumerate(lengths)]
    about = {"device_name": device_name(device), **measured_on(model, device, dtype)}
    peer, missing = _peer(model, decoder)
    exact = device == "cpu" and dtype == "float32"
    found = []
    for name, fields in (("greedy", {}), ("temperature 1", {"temperature": 1.0}), ("cuts", CUTS)):
        params = SamplingParams(ignore_eos=True, max_tokens=new_tokens, seed=seed, **fields)
        log.info("%s: %s", name, fields)
        for row in _checks(decoder, asked, params, candidates, rows, tolerance, exact, peer):
            found.append(_row(name, fields, about, **row))
        if missing:
            skipped = {"check": "transformers", "meaning": "", "tolerance": tolerance}
            found.append(_row(name, fields, about, **skipped, status="skipped", reason=missing))
    return found


def _peer(model, decoder):
    from ember.model.reference import load_peer

    try:
        return load_peer(model, decoder).eval(), None
    except ImportError as error:
        return None, f"not installed here: {error}"


def _checks(decoder, prompts, params, candidates, rows, tolerance, exact, peer):
    """Each check as a dict of check, meaning, tolerance, and what `compare` gives."""
    from ember.cache.radix import RadixCache
    from ember.engine.engine import Engine
    from ember.engine.prefill import PrefixPrefill

    capacity = max(map(len, prompts)) + params.max_tokens
    device = decoder.embed_tokens.weight.device

    def run(order=None, *, n=candidates, alone=False, **options):
        engine = Engine(decoder, capacity=capacity, **({"max_rows": rows} | options))
        order = list(range(len(prompts))) if order is None else order
        if alone:
            return [engine.generate([prompts[p]], params, n)[0] for p in order]
        done = engine.generate([prompts[p] for p in order], params, n)
        return [done[order.index(p)] for p in range(len(prompts))]

    base = run()
    backwards = list(reversed(range(len(prompts))))

    def against(check, other, allowed, meaning):
        return {"check": check, "meaning": meaning, "tolerance": allowed} | compare(base, other)

    yield against("rerun", run(), 0.0, "the same call by a new engine")
    yield against(
        "other company", run(backwards, max_rows=3), tolerance, "prompts in reverse, 3 rows"
    )
    yield against("alone", run(n=1, alone=True), tolerance, "each prompt's first candidate alone")
    if exact:
        base_invariant = run(batch_invariant=True)
        other = run(backwards, max_rows=3, batch_invariant=True)
        alone = run(n=1, alone=True, batch_invariant=True)
        what = {"check": "invariant, other company", "meaning": "batch_invariant, reverse, 3 rows"}
        yield what | {"tolerance": 0.0} | compare(base_invariant, other)
        what = {"check": "invariant, alone", "meaning": "batch_invariant, first candidate alone"}
        yield what | {"tolerance": 0.0} | compare(base_invariant, alone)
    budget = 64 * capacity * decoder.arch.kv_bytes_per_token(4)
    cache = RadixCache(budget)
    run(prefill=PrefixPrefill(cache))
    again = run(prefill=PrefixPrefill(cache))
    yield against("prefix cache", again, tolerance, "prompts found in the prefix cache")
    yield {
        "check": "teacher-forced",
        "meaning": "one forward of the decoder over prompt and completion",
        "tolerance": tolerance,
    } | forced(base, prompts, params, lambda tokens: decoder.logits(decoder(tokens)), device)
    if peer is not None:
        yield {
            "check": "transformers",
            "meaning": "one forward of Transformers' model, and its logits processors",
            "tolerance": tolerance,
        } | forced(
            base, prompts, params, lambda tokens: peer(tokens).logits, device, processors(params)
        )


def compare(base: Sequence, others: Sequence) -> dict:
    """Completions against others, of as many candidates as these have."""
    count = tokens = mismatches = 0
    raw = sampled = 0.0
    for row, other in zip(base, others, strict=True):
        for one, two in zip(row, other, strict=False):
            count += 1
            tokens += len(one.tokens)
            same = [a == b for a, b in zip(one.tokens, two.tokens, strict=False)]
            mismatches += same.count(False) + abs(len(one.tokens) - len(two.tokens))
            # What follows another token is another text.
            upto = same.index(False) if False in same else len(same)
            raw = max(raw, _largest(one.raw_logprobs, two.raw_logprobs, upto))
            sampled = max(sampled, _largest(one.logprobs, two.logprobs, upto))
    return {
        "candidates": count,
        "tokens": tokens,
        "token_mismatches": mismatches,
        "max_logprob_diff": raw,
        "max_sampled_logprob_diff": sampled,
    }


def _largest(ones: Sequence[float], others: Sequence[float], upto: int) -> float:
    pairs = zip(ones[:upto], others[:upto], strict=True)
    return max((abs(a - b) for a, b in pairs), default=0.0)


def forced(base, prompts, params, logits_of, device, process=None) -> dict:
    """Completions against one forward over each; `process` turns logits into sampling scores."""
    import torch

    from ember.backends.sampling import cut_tail

    def scores(raw):
        if process is not None:
            return process(raw)
        return cut_tail(raw.log_softmax(-1) / params.temperature, params)

    count = tokens = mismatches = 0
    raw_worst = sampled_worst = 0.0
    for prompt, row in zip(prompts, base, strict=True):
        for one in row:
            count, tokens = count + 1, tokens + len(one.tokens)
            with torch.inference_mode():
                ids = torch.tensor([list(prompt) + list(one.tokens)], device=device)
                logits = logits_of(ids)[0, len(prompt) - 1 : -1].float()
            at = ids[0, len(prompt) :, None]
            raw = logits.log_softmax(-1).gather(1, at)[:, 0].tolist()
            raw_worst = max(raw_worst, _largest(raw, one.raw_logprobs, len(raw)))
            if params.greedy:
                mismatches += int((logits.argmax(-1) != at[:, 0]).sum())
                continue
            found = scores(logits).log_softmax(-1).gather(1, at)[:, 0].tolist()
            # What the other side cuts away could not have been sampled there.
            kept = [pair for pair in zip(found, one.logprobs, strict=True) if pair[0] > -math.inf]
            mismatches += len(found) - len(kept)
            sampled_worst = max([sampled_worst, *(abs(a - b) for a, b in kept)])
    return {
        "candidates": count,
        "tokens": tokens,
        "token_mismatches": mismatches,
        "max_logprob_diff": raw_worst,
        "max_sampled_logprob_diff": None if params.greedy else sampled_worst,
    }


def processors(params):
    """Transformers' logits processors of the same parameters, as one function of logits (T, V)."""
    from transformers import (
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    steps = []
    if not params.greedy and params.temperature != 1:
        steps.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        steps.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        steps.append(TopPLogitsWarper(params.top_p))
    if params.min_p > 0:
        steps.append(MinPLogitsWarper(params.min_p))

    def process(logits):
        for step in steps:
            logits = step(None, logits)
        return logits

    return process


def _row(sampling: str, fields: dict, about: dict, *, check: str, meaning: str, **values) -> dict:
    row = {
        "check": check,
        "sampling": ", ".join(f"{k} {v:g}" for k, v in fields.items()) or sampling,
        "candidates": 0,
        "tokens": 0,
        "token_mismatches": None,
        "max_logprob_diff": None,
        "max_sampled_logprob_diff": None,
        "holds": None,
        "meaning": meaning,
        "status": "ok",
        "reason": None,
        **about,
        **values,
    }
    if row["status"] == "ok":
        differences = [row["max_logprob_diff"], row["max_sampled_logprob_diff"] or 0.0]
        row["holds"] = not row["token_mismatches"] and max(differences) <= row["tolerance"]
    return row
