"""Merging adapters on a GPU: the kernel's sums, exact unloading, captured graphs, and its speed.

    python tests/gpu/check_lora.py [--tune]

Checks stop at the first difference. `--tune` times tiles at Qwen3-4B's shape.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from ember.backends.sampling import SamplingParams
from ember.engine.engine import Engine
from ember.lora.adapter import draw_adapter, linears
from ember.lora.kernels import TILE, Launch, Matrix, Tile
from ember.lora.merge import Merger
from ember.lora.store import AdapterStore
from ember.measure.roofline import copy_bandwidth_gb_s
from ember.model.architecture import Architecture
from ember.model.checkpoint import random_decoder

SIZES = {
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_layers": 3,
    "num_heads": 8,
    "num_kv_heads": 2,
    "head_dim": 64,
    "vocab_size": 997,
    "max_positions": 512,
}


def small(dtype, seed=0):
    return random_decoder(Architecture.make(model_type="qwen3", **SIZES), seed, "cuda", dtype)


def drawn(decoder, seed, rank=8, **more):
    return draw_adapter(decoder, rank=rank, alpha=2 * rank, seed=seed, b_std=0.02, **more)


def equal(decoder, before):
    return all(
        torch.equal(p.view(torch.uint8), q.view(torch.uint8))
        for p, q in zip(decoder.parameters(), before, strict=True)
    )


@torch.no_grad()
def check_sums() -> None:
    """Every weight is the float64 sum rounded to nearest, but for ties of the float32 sum."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for rank in (8, 24):
            for keep in ("device", "host", "none"):
                decoder = small(dtype)
                before = [p.detach().clone() for p in decoder.parameters()]
                base = {k: m.weight.detach().double() for k, m in linears(decoder).items()}
                merger = Merger(decoder, keep=keep)
                assert merger.uses_kernels
                adapter = drawn(decoder, 1, rank)
                merger.swap(adapter)
                shares, worst = [], 0.0
                for key, part in adapter.items():
                    wanted = base[key] + part.delta().cuda()
                    found = linears(decoder)[key].weight
                    shares.append((found == wanted.to(dtype)).float().mean().item())
                    worst = max(worst, (found.double() - wanted).abs().max().item())
                print(f"sums {dtype} rank {rank} keep {keep}: {min(shares):.5f}, {worst:.2e}")
                if dtype == torch.float32:
                    assert worst < 1e-6, worst
                else:
                    assert min(shares) > 0.998, min(shares)
                for seed in range(5):
                    merger.swap(drawn(decoder, seed % 3, rank) if seed < 3 else adapter)
                merger.swap(drawn(decoder, 7, 4, projections=("v_proj", "up_proj")))
                merger.swap(None)
                assert equal(decoder, before) == (keep != "none"), (dtype, rank, keep)


@torch.no_grad()
def check_graphs() -> None:
    """Captured graphs see a swap: greedy tokens equal those of an engine made for the adapter."""
    sampling = SamplingParams(temperature=0.0, max_tokens=24)
    prompts = [[5, 9, 2, 40, 41, 3, 3, 17] * 8]
    decoder = small(torch.bfloat16)
    engine = Engine(decoder, capacity=256)
    store = AdapterStore(decoder, engine=engine)
    for seed in (1, 2):
        store.load(f"a{seed}", drawn(decoder, seed).scaled(8.0))
    for _ in range(3):
        base = engine.generate(prompts, sampling)[0][0]
    backend = engine.backend
    for seed in (1, 2, 1):
        store.activate(f"a{seed}")
        found = engine.generate(prompts, sampling)[0][0]
        twin = small(torch.bfloat16)
        other = AdapterStore(twin)
        other.load("x", drawn(twin, seed).scaled(8.0))
        other.activate("x")
        wanted = Engine(twin, capacity=256).generate(prompts, sampling)[0][0]
        assert found.tokens == wanted.tokens, (seed, found.tokens, wanted.tokens)
        assert found.tokens != base.tokens
    store.deactivate()
    assert engine.generate(prompts, sampling)[0][0].tokens == base.tokens
    assert engine.backend is backend
    print("graphs: replayed steps and prefills see each swap")


def timed(call, repeats=30) -> float:
    times = []
    for n in range(repeats + 3):
        torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times += [time.perf_counter() - began] if n >= 3 else []
    return sorted(times)[len(times) // 2] * 1e3


@torch.no_grad()
def tune(modes=(False,)) -> None:
    decoder = random_decoder(Architecture.make("qwen3-4b"), 0, "cuda", torch.bfloat16)
    adapters = [drawn(decoder, seed) for seed in (1, 2)]
    weights = [linears(decoder)[key].weight for key in adapters[0]]
    traffic = 2 * sum(w.nbytes for w in weights)
    bandwidth = copy_bandwidth_gb_s("cuda", repeats=30)
    print(f"{len(weights)} matrices, limit {traffic / bandwidth / 1e6:.3f} ms at {bandwidth:.0f}")
    for keep in ("device", "host"):
        merger = Merger(decoder, keep=keep)
        one, two = map(merger.prepare, adapters)
        merger.swap(one)
        state = [one, two]

        def replace(merger=merger, state=state):
            state.reverse()
            merger.swap(state[0])

        def back(merger=merger, one=one):
            merger.swap(None)
            merger.swap(one)

        print(f"merger, keep {keep}, {TILE}: replace {timed(replace):.3f} ms")
        print(f"  rollback and apply {timed(back):.3f} ms")
        merger.forget_base()
    base = [w.detach().clone() for w in weights]
    factors = [Merger(decoder).prepare(adapter).factors.values() for adapter in adapters]
    padded = [
        [tuple(torch.cat([f, torch.zeros_like(f)]) for f in pair) for pair in side]
        for side in factors
    ]
    best = (float("inf"), TILE)
    for two in modes:
        for dot, shapes in (("", SUM_TILES), ("tf32x3", DOT_TILES)):
            sides = padded if dot else [list(side) for side in factors]
            for tile in shapes:
                matrices = [
                    Matrix(w, w if two else b, new, old if two else None)
                    for w, b, new, old in zip(weights, base, *sides, strict=True)
                ]
                try:
                    launch = Launch(matrices, tile, dot)
                    ms = timed(launch.run, 10)
                except Exception as error:
                    print("failed", two, dot, tile, str(error)[:80])
                    continue
                kind = "W + new - old" if two else "base + new"
                print(f"{kind}, {dot or 'sum'}, {tile}, even {launch._even}: {ms:.3f} ms")
                if not two and not dot:
                    best = min(best, (ms, tile), key=lambda found: found[0])
    print(f"best: TILE = {best[1]}")


SUM_TILES = [
    Tile(rows, cols, warps, steps)
    for rows, cols, warps in ((16, 256, 4), (32, 256, 4), (16, 256, 2), (8, 256, 2))
    for steps in (4, 8)
]
DOT_TILES = [Tile(32, 256, 8, 4), Tile(16, 256, 4, 4)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--tune", action="store_true")
    if parser.parse_args().tune:
        tune()
    else:
        check_graphs()
        check_sums()
