"""Measure attention of new tokens to a cache, and corrections of KV, on a CUDA device.

    PYTHONPATH=src python tests/gpu/measure_prefill.py [--out FILE.json]

Shapes of Qwen3-4B in bfloat16, random numbers. Each call runs over as many layers as the L2 cannot
hold, as one graph; medians, smallest and largest of its replays. Whole prefills with and without
reuse are measured by the workflow (`prefix_sweep`).
"""

import argparse
import json
import statistics
from pathlib import Path

import torch

from ember.backends.cuda.causal_attention import Tile, attend_causal
from ember.backends.cuda.correction import correct
from ember.measure.clock import repeat
from ember.model.decoder import attend

HEADS, KV_HEADS, D, LAYERS = 32, 8, 128, 12
TOKENS = [(512, 0), (512, 512), (1024, 0), (1024, 1024), (2048, 0), (2048, 2048), (4096, 0)]
TILES = [(64, 64, 3, 4), (128, 64, 3, 8), (128, 128, 2, 8)]
OPTIONS = {"device": "cuda", "dtype": torch.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with torch.inference_mode():
        rows = [row for shape in TOKENS for row in measure_attention(*shape)]
        rows += [measure_correction(tokens, rank=8) for tokens in (512, 2048, 4096)]
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(rows, indent=1))


def measure_attention(tokens: int, past: int) -> list[dict]:
    """The library's and the kernel's, with several tilings."""
    q = torch.randn(LAYERS, 1, tokens, HEADS, D, **OPTIONS)
    kv = torch.randn(LAYERS, 2, 1, KV_HEADS, past + tokens + 64, D, **OPTIONS)
    memory = [layer[..., : past + tokens, :].unbind() for layer in kv]
    calls = {"library": lambda q, k, v: attend(q.transpose(1, 2), k, v)}
    for tile in TILES:
        calls[f"kernel {tile}"] = lambda q, k, v, tile=tile: attend_causal(
            q, k, v, tile=Tile(*tile), pdl=True
        )
    operations = 4 * HEADS * D * (tokens * past + tokens * (tokens + 1) / 2)
    rows = []
    for name, call in calls.items():
        us = [t / LAYERS for t in replays(lambda c=call: [c(q[i], *memory[i]) for i in range(12)])]
        row = summary(f"attention, {tokens} after {past}, {name}", us)
        row["tflop_s"] = operations / row["us"] / 1e6
        rows.append(row)
    return rows


def measure_correction(tokens: int, rank: int) -> dict:
    layers = 36
    kv = torch.randn(layers, 2, KV_HEADS, tokens, D, **OPTIONS)
    raw = torch.randn(layers, tokens, KV_HEADS, D, **OPTIONS)
    factors = torch.randn(layers, 2, tokens, rank, **OPTIONS)
    moved = 0.01 * torch.randn(layers, 2, KV_HEADS * D, rank, **OPTIONS)
    norms, angles = torch.ones(layers, D, **OPTIONS), torch.rand(tokens, D // 2, device="cuda")
    where = torch.arange(layers, device="cuda", dtype=torch.int32)
    tables = (angles.cos()[None], angles.sin()[None])
    call = (kv, factors, moved, where, tables, torch.zeros_like(where))
    us = replays(lambda: correct(*call, rotated=D, raw=raw, norms=norms, eps=1e-6))
    row = summary(f"correction of {tokens} tokens, rank {rank}", us)
    row["gb_s"] = (2 * raw.nbytes + 1.5 * kv.nbytes) / row["us"] / 1e3  # K is written only
    return row


def replays(call) -> list[float]:
    """Microseconds of the calls in one graph, several times."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return [ms * 1e3 for ms in repeat(graph.replay, warmup=2, repeats=9, device="cuda")]


def summary(name: str, us: list[float]) -> dict:
    row = {"what": name, "us": statistics.median(us), "low": min(us), "high": max(us)}
    print(f"{name}: {row['us']:.1f} us ({row['low']:.1f} to {row['high']:.1f})")
    return row


if __name__ == "__main__":
    main()
