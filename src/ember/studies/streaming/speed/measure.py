"""Time of every token of single streams on the fast path, side by side with the eager decoder,
with Transformers' sliding window, and with parts of the fast path switched off (S-0, S-4).

Tokens are drawn at random: which they are changes nothing of what a step does.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ember.measure.cost import step_bytes
from ember.studies.measured import blank, in_turns, on_device
from ember.studies.steps import makes
from ember.studies.streaming.speed.tables import SPEED_RUNS, SWITCHES

log = logging.getLogger(__name__)


class Subject(NamedTuple):
    """A point (see `ember.streaming.build`) with what is switched off, and what runs it."""

    spec: dict
    off: str | None = None
    transformers: bool = False


@makes(SPEED_RUNS)
def time_streams(
    *,
    model: str | Path,
    specs: Sequence[Mapping],
    tokens: int,
    warmup: int,
    repeats: int,
    device: str,
    dtype: str,
    seed: int,
) -> list[dict]:
    """Rows of SPEED_RUNS: all take turns on one stream, full from the first decoded token on.

    `specs`: points of one peak; switches are tried on the last one. `tokens`: decoded of each run.
    """
    import torch

    from ember.backends.threads import fastest_threads, restored_threads, use_threads
    from ember.measure.roofline import last_cache_bytes, read_bandwidth_gb_s
    from ember.streaming.build import build, columns

    device, decoder, about = on_device(model, device, dtype, named=True)
    size, arch = decoder.embed_tokens.weight.element_size(), decoder.arch
    peak, cache = specs[-1]["peak"], last_cache_bytes(device)
    weights, kv = step_bytes(arch, size, peak)
    about |= {
        "read_gb_s": read_bandwidth_gb_s(device, repeats=7 if device == "cpu" else 50),
        "weight_bytes": weights,
        "limit_kind": "memory" if cache is None or weights + kv > cache else "cache",
    }
    generator = torch.Generator().manual_seed(seed)
    # A full cache, whose first drop comes with the first token.
    stream = torch.randint(arch.vocab_size, (1, peak - 1 + tokens), generator=generator).to(device)
    threads = None if device != "cpu" else fastest_threads(lambda: decoder(stream[:, :1]))
    rows, runs = [], {}  # by name: what is called, and what its rows say
    for subject in _subjects(specs):
        method = build(subject.spec)
        what = about | columns(method) | {"off": subject.off}
        call, why = _call(subject, method, model, decoder)
        if call is None:
            empty = {"token_ms": [], "drop_steps": [], "repeat": 0}
            status = {"status": "skipped", "reason": why}
            rows.append(blank(SPEED_RUNS, **what, **empty, **status))
        else:
            name = f"{what['point']}, {'Transformers' if subject.transformers else 'Ember'}"
            runs[name + (f" without {subject.off}" if subject.off else "")] = call, what
    for turn, name in in_turns(runs, warmup, repeats, seed, str, log):
        call, what = runs[name]
        with restored_threads():
            use_threads(threads or torch.get_num_threads())
            row = _timed(call, stream, peak - 1, arch.kv_bytes_per_token(size))
        if turn >= 0:
            rows.append(blank(SPEED_RUNS, **what, **row, repeat=turn))
    return sorted(rows, key=lambda row: [str(row[name]) for name in SPEED_RUNS.key])


def _subjects(specs: Sequence[Mapping]) -> list[Subject]:
    window = {"name": "window", "peak": specs[-1]["peak"]}
    found = [Subject(dict(spec)) for spec in specs]
    found += [Subject(dict(specs[-1]), off) for off in SWITCHES]
    return [*found, Subject(window, transformers=True)]


def _call(subject: Subject, method, model, decoder) -> tuple[Callable | None, str | None]:
    """What streams (tokens, prefill) under a subject; or why nothing does."""
    from functools import partial

    from ember.backends.select import Case, select
    from ember.streaming import fast
    from ember.streaming.stream import run

    if subject.transformers:
        try:
            peer = _peer(model, decoder)
        except ImportError as error:
            return None, f"Transformers is not installed here ({error})"
        return partial(_sliding_window, peer, method.peak), None
    if subject.off == "fast path":

        def eager(tokens, prefill):
            return run(decoder, tokens, method, timed=True, prefill=prefill)

        return eager, None
    if (why := fast.unsupported_reason(method, decoder)) is not None:
        return None, f"no fast path: {why}"
    if subject.off in (None, "soft ring"):
        spare = {} if subject.off is None else {"spare": 0}
    elif select(Case.of(decoder)).name != "kernels":
        return None, "of the CUDA kernels only: the CPU's step is one call of compiled code"
    elif subject.off == "CUDA graphs":
        spare = {"graphs": False}
    elif decoder.arch.norm == "rms" and not decoder.arch.parallel_residual:
        return None, "plain RMSNorms are part of the products, whose kernels have no other form"
    else:
        from ember.backends.cuda.step import FUSED  # imports Triton

        spare = {"fused": FUSED - {"norm" if subject.off == "fused norm" else "mlp"}}

    def fast_run(tokens, prefill):
        return fast.run(decoder, tokens, method, timed=True, prefill=prefill, **spare)

    return fast_run, None


def _timed(call: Callable, tokens, prefill: int, token_bytes: int) -> dict:
    """A run's columns."""
    import gc

    import torch

    gc.collect()  # nothing of the subject before
    if tokens.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    found = call(tokens, prefill)
    start, decoded = found.prefilled, tokens.shape[1] - found.prefilled
    drops = [(step - start, count) for step, count in found.drops if step > start]
    return {
        "path": found.path,
        "prefill_ms": found.prefill_ms,
        "token_ms": found.token_ms[start:].tolist(),
        "drop_steps": [step for step, _ in drops],
        "dropped": sum(count for _, count in drops),
        "copied_bytes": found.copied_bytes / decoded,
        "kv_bytes": float(found.visible[start:].mean()) * token_bytes,
        "memory_mb": (torch.cuda.max_memory_allocated() - before) / 1e6 if tokens.is_cuda else None,
    }


def _peer(model, decoder):
    from transformers.cache_utils import DynamicSlidingWindowLayer  # noqa: F401

    from ember.model.reference import load_peer

    return load_peer(model, decoder).eval()


def _sliding_window(peer, peak: int, tokens, prefill: int):
    """Transformers' own model and cache, whose layers keep the newest tokens: a `stream.Run`."""
    import torch
    from transformers.cache_utils import Cache, DynamicSlidingWindowLayer

    from ember.measure.clock import between_ms, mark
    from ember.streaming.stream import Run

    depth, total = peer.config.num_hidden_layers, tokens.shape[1]
    cache = Cache(layers=[DynamicSlidingWindowLayer(peak) for _ in range(depth)])
    visible = np.minimum(np.arange(1, total + 1), peak)
    with torch.inference_mode():
        marks = [mark(tokens.device)]
        for start, stop in [(0, prefill), *((n, n + 1) for n in range(prefill, total))]:
            peer(tokens[:, start:stop], past_key_values=cache, use_cache=True, logits_to_keep=1)
            marks.append(mark(tokens.device))
    prefill_ms, *times = between_ms(marks)
    each = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    # A new tensor of all at each token; from then on one token leaves with each.
    drops = [(step, 1) for step in range(max(prefill, peak - 1) + 1, total + 1)]
    return Run(
        np.zeros(0),
        visible,
        drops,
        copied_bytes=each * (total - prefill),
        path="transformers",
        token_ms=np.r_[np.zeros(prefill), times],
        prefilled=prefill,
        prefill_ms=prefill_ms,
    )
