"""Decoding against the memory's limit: candidates of one prompt, with kernels and without (P1-4).

A step reads every weight once and the KV of what it attends to; at the read bandwidth measured in
the same run that takes `limit_ms`, and no step is faster. `measure_decode` times whole generations
through the public engine, `time_kernels` what a step consists of.
"""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ember.measure.clock import PhaseClock, repeat, summarise
from ember.measure.device import resolve, synchronize
from ember.measure.progress import Progress
from ember.studies.p1.roofline.tables import DECODE_KERNELS, DECODE_ROOFLINE, PREFILL_TIMES
from ember.studies.rows import measured_on
from ember.studies.steps import makes

log = logging.getLogger(__name__)


@makes(DECODE_ROOFLINE, DECODE_KERNELS, PREFILL_TIMES)
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
) -> tuple[list[dict], list[dict], list[dict]]:
    """Rows of DECODE_ROOFLINE, DECODE_KERNELS and PREFILL_TIMES.

    `samplings`: fields of SamplingParams. `rows`: numbers of candidates. The prompt is drawn at
    random: what tokens it has does not change what a step reads.
    """
    import torch

    from ember.backends.sampling import SamplingParams
    from ember.engine.engine import Engine
    from ember.measure.roofline import read_bandwidth_gb_s
    from ember.model.checkpoint import load_decoder

    device = resolve(device)
    decoder = load_decoder(model, device, getattr(torch, dtype))
    about = {
        # Many repeats: the first come out up to a tenth low.
        "read_gb_s": read_bandwidth_gb_s(device, repeats=50),
        "device_name": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        **measured_on(model, device, dtype),
    }
    generator = torch.Generator().manual_seed(seed)
    found, kernels, prefills = [], [], []
    progress = Progress(log, len(contexts) * len(rows) * len(samplings))
    for context in contexts:
        drawn = torch.randint(decoder.arch.vocab_size, (context,), generator=generator).tolist()
        engines = {
            operators: Engine(
                decoder, capacity=context + new_tokens, kernels=operators == "kernels"
            )
            for operators in ("plain", "kernels")
        }
        for candidates in rows:
            what = {"context": context, "rows": candidates}
            for settings in samplings:
                sampling = SamplingParams(max_tokens=new_tokens, seed=seed, **settings)
                found += _generations(engines, drawn, what, sampling, warmup, repeats, about)
                progress.step(f"{context} tokens, {candidates} rows, {describe(sampling)}")
            for operators, engine in engines.items():
                kernels += time_kernels(engine, {"operators": operators} | what, new_tokens, about)
        for operators, engine in engines.items():
            prefills += _prefills(engine, drawn, operators, repeats, about)
        del engines
    return found, kernels, prefills


def _prefills(engine, prompt: list[int], operators: str, repeats: int, about: dict) -> list[dict]:
    """Back to back: without pauses a GPU at its power limit lowers its clock."""
    samples = repeat(
        lambda: engine.prefill_prompt(prompt), warmup=3, repeats=repeats, device=about["device"]
    )
    return [
        {
            "operators": operators,
            "context": len(prompt),
            "repeat": number,
            "prefill_ms": ms,
            **about,
        }
        for number, ms in enumerate(samples)
    ]


def _generations(engines, prompt, what, sampling, warmup, repeats, about) -> list[dict]:
    """One row an engine and repeat: a run with a clock, and one without for the total.

    The engines take turns, and which goes first alternates: drift of the machine biases neither.
    """
    candidates, device, new_tokens = what["rows"], about["device"], sampling.max_tokens

    def run(engine, clock: PhaseClock | None = None) -> float:
        synchronize(device)
        began = time.perf_counter()
        engine.generate([prompt], sampling, num_candidates=candidates, clock=clock)
        synchronize(device)
        return (time.perf_counter() - began) * 1e3

    for engine in engines.values():
        for _ in range(warmup):
            run(engine)
    decoder = next(iter(engines.values())).decoder
    weight_bytes, kv_bytes = _bytes_of_a_step(decoder, what, new_tokens)
    limit = (weight_bytes + kv_bytes) / about["read_gb_s"] / 1e6
    rows = []
    for number in range(repeats):
        for operators in sorted(engines, reverse=number % 2 == 0):
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
                    "prefill_ms": times["prefill"],
                    "step_ms": step,
                    "sampling_ms": choose,
                    "total_ms": total,
                    "decode_tokens_per_s": candidates / (step + choose) * 1e3,
                    "total_tokens_per_s": candidates * new_tokens / total * 1e3,
                    "weight_bytes": weight_bytes,
                    "kv_bytes": kv_bytes,
                    "limit_ms": limit,
                    "share": limit / (step + choose),
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
    """Weights, and KV of the prompt and of half of what each candidate will have of its own."""
    size = decoder.embed_tokens.weight.element_size()
    return parameters_read(decoder) * size, _kv_bytes(decoder.arch, what, new_tokens, size)


def parameters_read(decoder) -> int:
    """Weights that one step reads: of an embedding that is not the head only rows."""
    parameters = sum(parameter.numel() for parameter in decoder.parameters())
    return parameters - (0 if decoder.arch.tie_embeddings else decoder.embed_tokens.weight.numel())


def time_kernels(engine, what: dict, new_tokens: int, about: dict) -> list[dict]:
    """Rows of DECODE_KERNELS for the memory that a generation of this size has left behind."""
    import torch

    if not engine.decoder.embed_tokens.weight.is_cuda:
        return [_no_kernels() | what | about]
    with torch.inference_mode():
        if (loop := engine.device_step) is not None:
            rows = _alone(engine.decoder.arch, loop, what, new_tokens, about)
        else:
            rows = _profiled(engine._slot(what["rows"]).step, what)
    return [{**what, **row, **about, "status": "ok", "reason": None} for row in rows]


def _no_kernels() -> dict:
    nothing = dict.fromkeys(("method", "launches", "us", "step_us", "bytes", "share"))
    reason = "no GPU: a step on the CPU is one call, whose parts have no times of their own"
    return {"kernel": "step", **nothing, "status": "skipped", "reason": reason}


def _alone(arch, loop, what: dict, new_tokens: int, about: dict) -> list[dict]:
    """Every part of the step in a graph of its own, over all layers: all weights, from memory."""
    from ember.backends.cuda.step import Seat

    loop.arrange([Seat(0, what["context"], new_tokens // 2)] * what["rows"])
    kv = _kv_bytes(arch, what, new_tokens, loop.logits.element_size())
    rows = []
    for name, call in loop.parts().items():
        once = name in ("embed", "head")
        launches = 1 if once else arch.num_layers
        # One head fits no cache, and one layer's weights are not read twice in a row.
        us = _graph_us(lambda call=call, n=launches: [call(index) for index in range(n)])
        size = {"attention": kv, "embed": None}.get(name, loop.weight_bytes.get(name))
        rows.append(
            {
                "kernel": name,
                "method": "alone",
                "launches": launches,
                "us": us / launches,
                "step_us": us,
                "bytes": size,
                "share": None if size is None else size / about["read_gb_s"] / 1e3 / us,
            }
        )
    return rows


def _kv_bytes(arch, what: dict, new_tokens: int, size: int) -> int:
    tokens = what["context"] + what["rows"] * new_tokens // 2
    return tokens * arch.kv_bytes_per_token(size)


def _graph_us(call: Callable[[], object]) -> float:
    import torch

    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return summarise(repeat(graph.replay, warmup=2, repeats=9, device="cuda"))["median"] * 1e3


def _profiled(step, what: dict) -> list[dict]:
    """Kernels of one step of plain operators, by name, those below 1 % of the time together."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    tokens = torch.zeros(what["rows"], dtype=torch.long, device="cuda")
    cache = step._cache
    cache.truncate(what["context"])
    step(tokens)
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        cache.truncate(what["context"])
        step(tokens)
        torch.cuda.synchronize()
    events = [e for e in recorded.key_averages() if e.device_time_total > 0]
    whole = sum(e.device_time_total for e in events)
    rows, rest = [], {"launches": 0, "step_us": 0.0}
    for event in sorted(events, key=lambda e: -e.device_time_total):
        if event.device_time_total < 0.01 * whole:
            rest["launches"] += event.count
            rest["step_us"] += event.device_time_total
        else:
            rows.append(_profile_row(event.key[:80], event.count, event.device_time_total))
    if rest["launches"]:
        rows.append(_profile_row("others", rest["launches"], rest["step_us"]))
    return _distinct(rows)


def _profile_row(name: str, launches: int, us: float) -> dict:
    return {
        "kernel": name,
        "method": "profiler",
        "launches": launches,
        "us": us / launches,
        "step_us": us,
        "bytes": None,
        "share": None,
    }


def _distinct(rows: list[dict]) -> list[dict]:
    """Names cut short may coincide: they are numbered."""
    seen: dict[str, int] = {}
    for row in rows:
        seen[row["kernel"]] = seen.get(row["kernel"], 0) + 1
        if seen[row["kernel"]] > 1:
            row["kernel"] += f" ({seen[row['kernel']]})"
    return rows
