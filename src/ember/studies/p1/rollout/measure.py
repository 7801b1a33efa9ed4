"""Speed of continuous batching against the limits of the batches that really ran (P1-4).

A step reads every weight once, each running prompt's KV once, and what each row has of its own. At
the read bandwidth measured in the same run that takes a time below which no step can be, except
where all of it fits into a cache. With many rows the operations of the products take longer than
their reads; `roofline_ms` counts the longer of the two, for products and for attention. Prefills
count in the total, not in the steps, which are decoding and sampling.
"""

import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from ember.measure.clock import timed
from ember.measure.cost import read_ms, roofline_ms, step_bytes, step_operations
from ember.measure.device import device_name
from ember.measure.memory import forget_peak, peak_gb
from ember.measure.progress import Progress
from ember.studies.measured import on_device
from ember.studies.p1.rollout.tables import POINT, ROLLOUT_THROUGHPUT, point_name
from ember.studies.steps import makes

log = logging.getLogger(__name__)


@makes(ROLLOUT_THROUGHPUT)
def measure_rollouts(
    *,
    model: str | Path,
    workload,
    points: Sequence[Mapping],
    warmup: int,
    device: str,
    dtype: str,
    seed: int,
) -> list[dict]:
    """Rows of ROLLOUT_THROUGHPUT: the repeats of each point (prompts, candidates, rows, lengths).

    Candidates sample at temperature 1 to the full length. A point is measured at a stretch, since
    its memory and graphs belong to it; points come in an order drawn from the seed.
    """
    from ember.measure.roofline import matmul_tflops, read_bandwidth_gb_s
    from ember.studies.p1.workload.make import read_workload

    device, decoder, about = on_device(model, device, dtype)
    streams = read_workload(workload)
    about |= {
        "read_gb_s": read_bandwidth_gb_s(device, repeats=50 if device != "cpu" else 7),
        "matmul_tflops": matmul_tflops(device, dtype, repeats=20 if device != "cpu" else 7),
        "device_name": device_name(device),
    }
    order, rows = list(points), []
    random.Random(seed).shuffle(order)
    progress = Progress(log, sum(warmup + point["repeats"] for point in order))
    for point in order:
        context, prefix, candidates = (point[key] for key in ("context", "prefix", "candidates"))
        prompts = [streams.prompt(p, context, prefix) for p in range(point["prompts"])]
        engine = make_engine(decoder, point["rows"], context, point["generation"], prefix)
        for repeat in range(-warmup, point["repeats"]):
            engine.prefill.forget()
            # A warm-up needs the batches of a full run, the last one too, not their number.
            whole = max(1, point["rows"] // candidates)
            warm = prompts[: whole + len(prompts) % whole]
            some = prompts if repeat >= 0 else warm
            row = time_rollout(engine, some, point, repeat, seed, about)
            progress.step(f"{row['point']}: {row['tokens_per_s']:.0f} tokens/s")
            if repeat >= 0:
                rows.append(row)
        del engine
    return sorted(rows, key=lambda row: tuple(row[name] for name in _ORDER))


def make_engine(decoder, rows: int, context: int, generation: int, prefix: int):
    """An engine of so many rows; with a prefix cache for one prefix where prompts share one."""
    from ember.cache.radix import RadixCache
    from ember.engine.engine import Engine
    from ember.engine.prefill import PlainPrefill, PrefixPrefill

    size = decoder.embed_tokens.weight.element_size()
    budget = 2 * context * decoder.arch.kv_bytes_per_token(size)
    prefill = PrefixPrefill(RadixCache(budget)) if prefix else PlainPrefill()
    return Engine(decoder, capacity=context + generation, max_rows=rows, prefill=prefill)


def time_rollout(engine, prompts, point: Mapping, repeat: int, seed: int, about: dict) -> dict:
    """A row of ROLLOUT_THROUGHPUT from one call."""
    from ember.backends.sampling import SamplingParams

    device, generation = about["device"], point["generation"]
    sampling = SamplingParams(temperature=1.0, max_tokens=generation, seed=seed, ignore_eos=True)
    forget_peak(device)
    total, _ = timed(lambda: engine.generate(prompts, sampling, point["candidates"]), device)
    stats = engine.last_stats
    assert stats.generated_tokens == generation * point["candidates"] * len(prompts)
    steps = stats.decode_ms + stats.sampling_ms
    weights, kv = bytes_read(engine.decoder, stats)
    limit = read_ms(weights * stats.steps + kv, about["read_gb_s"])
    roofline = longer_ms(engine.decoder, stats, about["read_gb_s"], about["matmul_tflops"])
    return {
        "point": point_name(point),
        **{name: point[name] for name in POINT},
        "repeat": repeat,
        "total_ms": total,
        "prefill_ms": stats.lookup_ms + stats.prefill_ms + stats.store_ms,
        **{name: getattr(stats, name) for name in ("decode_ms", "sampling_ms", "transfer_ms")},
        "tokens_per_s": stats.generated_tokens / total * 1e3,
        "decode_tokens_per_s": stats.generated_tokens / steps * 1e3,
        **{name: getattr(stats, name) for name in _COUNTS},
        "batch": sum(b.rows * b.steps for b in stats.batches) / stats.steps,
        "peak_gb": peak_gb(device),
        "weight_bytes": weights,
        "kv_bytes": kv / stats.steps,
        "limit_ms": limit,
        "share": limit / steps,
        "roofline_ms": roofline,
        "roofline_share": roofline / steps,
        **about,
    }


_ORDER = ("context", "generation", "prefix", "rows", "candidates", "prompts", "repeat")
_COUNTS = (
    *("generated_tokens", "discarded_tokens", "steps", "occupancy", "prefills", "prefix_hits"),
    *("cached_tokens", "peak_kv_bytes", "reserved_kv_bytes"),
)


def bytes_read(decoder, stats) -> tuple[int, int]:
    """Bytes of weights that one step reads, and of KV that all steps of a rollout have read."""
    size = decoder.embed_tokens.weight.element_size()
    tokens = sum(b.steps * b.prompt_tokens + b.own_tokens for b in stats.batches)
    return step_bytes(decoder.arch, size, tokens)


def longer_ms(decoder, stats, read_gb_s: float, tflops: float) -> float:
    """Time of a rollout's steps if their products took the longer of reading the weights and of
    their operations, and attention likewise (see the module)."""
    arch, size = decoder.arch, decoder.embed_tokens.weight.element_size()
    total = 0.0
    for batch in stats.batches:
        attended = batch.steps * batch.rows * batch.prompt_tokens / max(1, batch.prompts)
        attended += batch.own_tokens
        done = step_operations(arch, batch.steps * batch.rows, attended)
        read = batch.steps * batch.prompt_tokens + batch.own_tokens
        weights, kv = step_bytes(arch, size, read)
        total += roofline_ms(batch.steps * weights, done.matrices, read_gb_s, tflops)
        total += roofline_ms(kv, done.attention, read_gb_s, tflops)
    return total
