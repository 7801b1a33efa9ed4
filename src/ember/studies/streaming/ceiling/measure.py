"""The cache's own work, token by token, in the shape of a model and without its layers (S-5).

Each kind does what it must before attention can read sinks, window and the new token as one tensor.
Kinds of other projects are written out here, of this one the streaming cache itself is run.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ember.measure.clock import timed
from ember.measure.cost import parameters_read
from ember.measure.device import resolve
from ember.studies.measured import in_order, in_turns, machine
from ember.studies.steps import makes
from ember.studies.streaming.ceiling.tables import CEILING_RUNS, KINDS

log = logging.getLogger(__name__)

N_SINK = 4


@makes(CEILING_RUNS)
def time_caches(
    *,
    model: str | Path,
    peak: int,
    tokens: int,
    intervals: Sequence[int],
    warmup: int,
    repeats: int,
    device: str,
    dtype: str,
    seed: int,
) -> list[dict]:
    """Rows of CEILING_RUNS: kinds and periods take turns, one row of the batch."""
    import torch

    from ember.measure.roofline import (
        copy_bandwidth_gb_s,
        last_cache_bytes,
        read_bandwidth_gb_s,
    )
    from ember.model.folder import read_architecture

    arch, device = read_architecture(model), resolve(device)
    number = getattr(torch, dtype)
    enough = 7 if device == "cpu" else 50  # a GPU's first come out up to a tenth low
    about = machine(model, device, dtype) | {
        "read_gb_s": read_bandwidth_gb_s(device, repeats=enough),
        "copy_gb_s": copy_bandwidth_gb_s(device, repeats=enough),
        "weight_bytes": parameters_read(arch) * number.itemsize,
        "last_cache": last_cache_bytes(device),
    }
    pairs = [(kind, 1) for kind in KINDS if kind not in ("shift", "ring")]
    pairs += [(kind, period) for kind in ("shift", "ring") for period in intervals]
    rows = []
    turns = in_turns(pairs, warmup, repeats, seed, lambda p: f"{p[0]}, R = {p[1]}", log)
    with torch.inference_mode():
        for turn, (kind, period) in turns:
            step, copied = MAKERS[kind](arch, peak, period, device, number)
            ms, count = timed(lambda step=step: _run(step, tokens), device)
            if turn >= 0:
                rows.append(
                    {
                        "kind": kind,
                        "compression_interval": period,
                        "peak": peak,
                        "tokens": tokens,
                        "kv_bytes": arch.kv_bytes_per_token(number.itemsize),
                        "repeat": turn,
                        "cache_ms": ms / count,
                        "copied_bytes": copied() / count,
                        **about,
                    }
                )
    return in_order(rows, CEILING_RUNS)


def _run(step: Iterator, tokens: int) -> int:
    for _ in range(tokens):
        next(step)
    return tokens


def _blocks(arch, length: int, device, dtype) -> list:
    """Keys and values of each layer, (1, Hkv, length, D)."""
    import torch

    shape = (1, arch.num_kv_heads, length, arch.head_dim)
    return [torch.zeros(shape, device=device, dtype=dtype) for _ in range(2 * arch.num_layers)]


def _cat(arch, peak, period, device, dtype, growing: bool) -> tuple[Iterator, Callable]:
    """A new tensor at each token, of all or of sinks and window."""
    import torch

    new = _blocks(arch, 1, device, dtype)
    state = {"kept": _blocks(arch, peak - 1, device, dtype), "bytes": 0}

    def steps():
        while True:
            kept = state["kept"]
            if growing and kept[0].shape[2] >= 2 * peak:  # as a stream of that length has
                kept = [one[:, :, : peak - 1].contiguous() for one in kept]
            held = [torch.cat([a, b], 2) for a, b in zip(kept, new, strict=True)]
            state["bytes"] += sum(one.nbytes for one in kept)
            if not growing:
                held = [torch.cat([one[:, :, :N_SINK], one[:, :, N_SINK + 1 :]], 2) for one in held]
                state["bytes"] += sum(one.nbytes for one in held)
            state["kept"] = held
            yield

    return steps(), lambda: state["bytes"]


def _roll(arch, peak, period, device, dtype) -> tuple[Iterator, Callable]:
    """Everything one to the left, then the token at the end."""
    held, new = _blocks(arch, peak, device, dtype), _blocks(arch, 1, device, dtype)
    state = {"bytes": 0}

    def steps():
        while True:
            for one, token in zip(held, new, strict=True):
                one.copy_(one.roll(-1, dims=2))
                one[:, :, -1:] = token
                state["bytes"] += 2 * one.nbytes
            yield

    return steps(), lambda: state["bytes"]


def _own(arch, peak, period, device, dtype, spare: int) -> tuple[Iterator, Callable]:
    """The streaming cache, pruned once a period."""
    import torch

    from ember.model.decoder import KeyRotation, Rotary
    from ember.streaming.cache import StreamingCache

    cache = StreamingCache(arch, 1, peak, device, dtype, spare=spare)
    gone = torch.arange(N_SINK, N_SINK + period, device=device)

    def store(count):
        at = cache.positions(count, 0)
        rotation = KeyRotation(None, Rotary(arch, at, dtype, False))
        k = torch.zeros((1, count, arch.num_kv_heads, arch.head_dim), device=device, dtype=dtype)
        for layer in range(arch.num_layers):
            cache.update(layer, k, k, rotation, k)

    store(peak)

    def steps():
        while True:
            if cache.slots == peak:
                cache.drop(gone)
            store(1)
            yield

    return steps(), lambda: cache.copied_bytes


MAKERS = {
    "append_cat": lambda *shape: _cat(*shape, growing=True),
    "slice_cat": lambda *shape: _cat(*shape, growing=False),
    "roll": _roll,
    "shift": lambda *shape: _own(*shape, spare=0),
    "ring": lambda arch, peak, *rest: _own(arch, peak, *rest, spare=peak // 2),
}
