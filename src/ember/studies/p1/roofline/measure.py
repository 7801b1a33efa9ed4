"""Decoding against the memory's limit: candidates of one prompt, with kernels and without (P1-4).

A step reads every weight once and the KV of what it attends to; at the read bandwidth measured in
the same run that takes `limit_ms`, and no step is faster, unless a cache holds all of it.
`measure_decode` times whole generations through the public engine, `time_kernels` what a step
consists of.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from ember.measure.clock import PhaseClock, repeat, timed
from ember.measure.cost import read_ms, step_bytes, step_tokens
from ember.measure.device import device_name
from ember.measure.progress import Progress
from ember.measure.statistics import summarise
from ember.measure.turns import rounds
from ember.studies.measured import blank, on_device
from ember.studies.p1.roofline.tables import DECODE_KERNELS, DECODE_ROOFLINE
from ember.studies.steps import makes

log = logging.getLogger(__name__)


@makes(DECODE_ROOFLINE, DECODE_KERNELS)
def measure_decode(
    *,
    model: str | Path,
    contexts: Sequence[int],
    rows: Sequence[int],
    new_tokens: int,
    samplings: Sequence[dict],
    warmup: int,
    repeats: int,
    device: str,
    dtype: str,
    seed: int,
) -> tuple[list[dict], list[dict]]:
    """Rows of DECODE_ROOFLINE and DECODE_KERNELS.

    `samplings`: fields of SamplingParams. `rows`: numbers of candidates. The prompt is drawn at
    random: what tokens it has does not change what a step reads. Plain operators, slow and with no
    limit of interest, and the parts of a step are timed in the first context, with the fewest and
    the most candidates; samplings but the first in the first context.
    """
    import torch

    from ember.backends.sampling import SamplingParams
    from ember.engine.engine import Engine
    from ember.measure.roofline import last_cache_bytes, read_bandwidth_gb_s

    device, decoder, about = on_device(model, device, dtype)
    # Many repeats: the first come out up to a tenth low.
    about["read_gb_s"] = read_bandwidth_gb_s(device, repeats=50)
    about["device_name"] = device_name(device)
    cache = last_cache_bytes(device)
    generator = torch.Generator().manual_seed(seed)
    found, kernels = [], []
    progress = Progress(log, len(rows) * (len(contexts) + len(samplings) - 1))
    for context in contexts:
        drawn = torch.randint(decoder.arch.vocab_size, (context,), generator=generator).tolist()
        engines = {
            operators: Engine(decoder, capacity=context + new_tokens, backend=backend)
            for operators, backend in (("plain", "eager"), ("kernels", None))
        }
        for candidates in rows:
            what = {"context": context, "rows": candidates}
            here = context == contexts[0]
            compared = here and candidates in (min(rows), max(rows))
            for settings in samplings if here else samplings[:1]:
                sampling = SamplingParams(
                    ignore_eos=True, max_tokens=new_tokens, seed=seed, **settings
                )
                both = compared and settings == samplings[0]
                timed_here = engines if both else {"kernels": engines["kernels"]}
                found += _generations(
                    timed_here, drawn, what, sampling, warmup, repeats, cache, about
                )
                progress.step(f"{context} tokens, {candidates} rows, {describe(sampling)}")
            for operators, engine in engines.items() if compared else ():
                kernels += time_kernels(engine, {"operators": operators} | what, new_tokens, about)
        del engines
    return found, kernels


def _generations(engines, prompt, what, sampling, warmup, repeats, cache, about) -> list[dict]:
    """One row an engine and repeat: a run with a clock, and one without for the total.

    The engines take turns, and which goes first alternates: drift of the machine biases neither.
    """
    candidates, device, new_tokens = what["rows"], about["device"], sampling.max_tokens

    def run(engine, clock: PhaseClock | None = None) -> float:
        def call():
            engine.generate([prompt], sampling, num_candidates=candidates, clock=clock)

        return timed(call, device)[0]

    for engine in engines.values():
        for _ in range(warmup):
            run(engine)
    weight_bytes, kv_bytes = _bytes_of_a_step(engines["kernels"].decoder, what, new_tokens)
    bound = cache is None or weight_bytes + kv_bytes > cache
    limit = read_ms(weight_bytes + kv_bytes, about["read_gb_s"]) if bound else None
    rows = []
    for number, order in rounds(engines, range(repeats)):
        for place, operators in enumerate(order):
            clock = PhaseClock(device)
            run(engines[operators], clock)
            total, times = run(engines[operators]), clock.times_ms()
            step, choose = times["decode"] / (new_tokens - 1), times["sampling"] / new_tokens
            rows.append(
                {
                    "operators": operators,
                    **what,
                    "generated_tokens": new_tokens,
                    "sampling": describe(sampling),
                    "repeat": number,
                    "first": place == 0 if len(engines) > 1 else None,
                    "step_ms": step,
                    "sampling_ms": choose,
                    "total_ms": total,
                    "decode_tokens_per_s": candidates / (step + choose) * 1e3,
                    "total_tokens_per_s": candidates * new_tokens / total * 1e3,
                    "weight_bytes": weight_bytes,
                    "kv_bytes": kv_bytes,
                    "limit_kind": "memory" if bound else "cache",
                    "limit_ms": limit,
                    "share": limit / (step + choose) if bound else None,
                    **about,
                }
            )
    return rows


def describe(sampling) -> str:
    """SamplingParams in words: the temperature and the cuts that are on, or greedy."""
    if sampling.greedy:
        return "greedy"
    off = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
    on = {name: getattr(sampling, name) for name in off if getattr(sampling, name) != off[name]}
    chosen = {"temperature": sampling.temperature} | on
    return ", ".join(f"{name}={value:g}" for name, value in chosen.items())


def _bytes_of_a_step(decoder, what: dict, new_tokens: int) -> tuple[int, int]:
    """Of weights, and of the KV that the average step reads."""
    size = decoder.embed_tokens.weight.element_size()
    tokens = step_tokens(what["context"], what["rows"], new_tokens)
    return step_bytes(decoder.arch, size, tokens)


def time_kernels(engine, what: dict, new_tokens: int, about: dict) -> list[dict]:
    """Rows of DECODE_KERNELS for the memory that a generation of this size has left behind."""
    import torch

    if not engine.decoder.embed_tokens.weight.is_cuda:
        reason = "no GPU: a step on the CPU is one call, whose parts have no times of their own"
        missing = {"kernel": "step", "status": "skipped", "reason": reason}
        return [blank(DECODE_KERNELS, **missing, **what, **about)]
    with torch.inference_mode():
        if engine.backend.name == "kernels":
            rows = _alone(engine.decoder, engine.backend.step, what, new_tokens, about)
        else:
            rows = _profiled(engine, what, new_tokens)
    return [blank(DECODE_KERNELS, **what, **row, **about) for row in rows]


def _alone(decoder, loop, what: dict, new_tokens: int, about: dict) -> list[dict]:
    """Every part of the step in a graph of its own, over all layers: all weights, from memory."""
    from ember.backends.cuda.step import Seat

    loop.arrange([Seat(0, what["context"], new_tokens // 2)] * what["rows"])
    _, kv = _bytes_of_a_step(decoder, what, new_tokens)
    rows = []
    for name, call in loop.parts().items():
        once = name in ("embed", "head")
        launches = 1 if once else decoder.arch.num_layers
        # One head fits no cache, and one layer's weights are not read twice in a row.
        us = _graph_us(lambda call=call, n=launches: [call(index) for index in range(n)])
        size = {"attention": kv, "embed": None}.get(name, loop.weight_bytes.get(name))
        share = None if size is None else size / about["read_gb_s"] / 1e3 / us
        rows.append(_kernel(name, "alone", launches, us) | {"bytes": size, "share": share})
    return rows


def _graph_us(call: Callable[[], object]) -> float:
    import torch

    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return summarise(repeat(graph.replay, warmup=2, repeats=9, device="cuda"))["median"] * 1e3


def _profiled(engine, what: dict, new_tokens: int) -> list[dict]:
    """Kernels of one step of plain operators, by name, those below 1 % of the time together."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from ember.backends.base import Candidate
    from ember.backends.sampling import SamplingParams

    backend = engine.backend
    run = backend.cache.reserve(what["context"])
    one = Candidate(run, SamplingParams(max_tokens=new_tokens, ignore_eos=True), 0)
    backend.join([one] * what["rows"], backend.logits.new_zeros(1, backend.logits.shape[1]))
    backend.sample()
    backend.advance()
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        backend.advance()
        torch.cuda.synchronize()
    backend.leave([], 0)
    backend.cache.free(run)
    events = [e for e in recorded.key_averages() if e.device_time_total > 0]
    whole = sum(e.device_time_total for e in events)
    rows, rest = [], {"launches": 0, "step_us": 0.0}
    for event in sorted(events, key=lambda e: -e.device_time_total):
        if event.device_time_total < 0.01 * whole:
            rest["launches"] += event.count
            rest["step_us"] += event.device_time_total
        else:
            name = event.key[:80]
            rows.append(_kernel(name, "profiler", event.count, event.device_time_total))
    if rest["launches"]:
        rows.append(_kernel("others", "profiler", rest["launches"], rest["step_us"]))
    return _distinct(rows)


def _kernel(name: str, method: str, launches: int, us: float) -> dict:
    timed = {"launches": launches, "us": us / launches, "step_us": us}
    return {"kernel": name, "method": method} | timed


def _distinct(rows: list[dict]) -> list[dict]:
    """Names cut short may coincide: they are numbered."""
    seen: dict[str, int] = {}
    for row in rows:
        seen[row["kernel"]] = seen.get(row["kernel"], 0) + 1
        if seen[row["kernel"]] > 1:
            row["kernel"] += f" ({seen[row['kernel']]})"
    return rows
