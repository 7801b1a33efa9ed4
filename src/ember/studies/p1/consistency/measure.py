"""A rollout again, under other batch compositions and by other means: equal tokens (P1-4.3)?"""

import logging
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ember.measure.device import device_name
from ember.studies.measured import blank, on_device
from ember.studies.p1.consistency.tables import ROLLOUT_CONSISTENCY
from ember.studies.steps import makes

log = logging.getLogger(__name__)

CUTS = {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.02}
FOUND = ("candidates", "tokens", "token_mismatches", "max_logprob_diff", "max_sampled_logprob_diff")


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
    from ember.backends.sampling import SamplingParams
    from ember.studies.p1.workload.make import read_workload

    device, decoder, about = on_device(model, device, dtype)
    about["device_name"] = device_name(device)
    streams = read_workload(workload)
    lengths = [max(1, prompt_tokens * (p + 1) // prompts) for p in range(prompts)]
    asked = [streams.prompt(p, length, 0) for p, length in enumerate(lengths)]
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

    def check(name, meaning, found, allowed=tolerance):
        return {"check": name, "meaning": meaning, "tolerance": allowed} | found

    other, alone = run(backwards, max_rows=3), run(n=1, alone=True)
    yield check("rerun", "the same call by a new engine", compare(base, run()), 0.0)
    yield check("other batch composition", "prompts in reverse, 3 rows", compare(base, other))
    yield check("alone", "each prompt's first candidate alone", compare(base, alone))
    if exact:
        invariant = run(batch_invariant=True)
        other = compare(invariant, run(backwards, max_rows=3, batch_invariant=True))
        alone = compare(invariant, run(n=1, alone=True, batch_invariant=True))
        yield check(
            "invariant, other batch composition", "batch_invariant, reverse, 3 rows", other, 0.0
        )
        yield check("invariant, alone", "batch_invariant, first candidate alone", alone, 0.0)
    budget = 64 * capacity * decoder.arch.kv_bytes_per_token(4)
    cache = RadixCache(budget)
    run(prefill=PrefixPrefill(cache))
    again = run(prefill=PrefixPrefill(cache))
    yield check("prefix cache", "prompts found in the prefix cache", compare(base, again))
    ours = forced(base, prompts, params, lambda tokens: decoder.logits(decoder(tokens)), device)
    yield check("teacher-forced", "one forward of the decoder over prompt and completion", ours)
    if peer is not None:
        process = processors(params)
        found = forced(base, prompts, params, lambda ids: peer(ids).logits, device, process)
        meaning = "one forward of Transformers' model, and its logits processors"
        yield check("transformers", meaning, found)


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
    return dict(zip(FOUND, (count, tokens, mismatches, raw, sampled), strict=True))


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
    sampled = None if params.greedy else sampled_worst
    return dict(zip(FOUND, (count, tokens, mismatches, raw_worst, sampled), strict=True))


def processors(params):
    """Transformers' logits processors of the same parameters, as one function of logits (T, V)."""
    import transformers

    steps = transformers.LogitsProcessorList()
    if not params.greedy and params.temperature != 1:
        steps.append(transformers.TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        steps.append(transformers.TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        steps.append(transformers.TopPLogitsWarper(params.top_p))
    if params.min_p > 0:
        steps.append(transformers.MinPLogitsWarper(params.min_p))
    return partial(steps, None)


def _row(sampling: str, fields: dict, about: dict, **values) -> dict:
    sampling = ", ".join(f"{k} {v:g}" for k, v in fields.items()) or sampling
    values = {"candidates": 0, "tokens": 0, "sampling": sampling} | values
    row = blank(ROLLOUT_CONSISTENCY, **about, **values)
    if row["status"] == "ok":
        differences = [row["max_logprob_diff"], row["max_sampled_logprob_diff"] or 0.0]
        row["holds"] = not row["token_mismatches"] and max(differences) <= row["tolerance"]
    return row
