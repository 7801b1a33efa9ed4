"""Check on a CUDA device that kernels with packed weights are right, and time them as they are cut.

    PYTHONPATH=src python tests/gpu/check_packed.py [--seconds 80] [--workers 14]

Parity is with the dequantised weight in float64; times are over more copies than the L2 holds, in
graphs, at Qwen3-4B's shapes, and stop when the seconds are over. The best cuts belong in PLANS,
TILES and FROM_ROWS of `ember.backends.cuda.packed`. Prints one line a check. Workers compile the
kernels before, which takes longer than all else. Not collected by pytest: machines with a GPU may
have nothing but torch.
"""

import argparse
import functools
import itertools
import multiprocessing
import statistics
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F

from ember.backends.cuda import packed, packed_prefill
from ember.backends.packing import _stack
from ember.backends.sampling import SamplingParams
from ember.engine.engine import Engine
from ember.measure.roofline import read_bandwidth_gb_s
from ember.model.architecture import Architecture
from ember.model.checkpoint import random_decoder
from ember.model.packed import PACKED, quantise_decoder

DEVICE = "cuda"
SHAPES = {  # (N, K), and what stands around the product
    "qkv": (6144, 2560, {"norm": True}),
    "o": (2560, 4096, {"summed": True}),
    "gate_up": (2 * 9728, 2560, {"gated": True, "norm": True}),
    "down": (2560, 9728, {"summed": True}),
    "head": (151936, 2560, {"norm": True}),
}
ROTATED = 256 * 2**20  # bytes; an H200's L2 has 60 MB
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 1e-3}
ARCH = Architecture.make(
    model_type="qwen3",
    hidden_size=256,
    intermediate_size=512,
    num_layers=3,
    num_heads=8,
    num_kv_heads=2,
    head_dim=64,
    vocab_size=1000,
    max_positions=1024,
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--seconds", type=float, default=80.0, help="of timing, at most; 0: checks alone"
    )
    parser.add_argument("--workers", type=int, default=14)
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}")
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.workers, mp_context=spawned) as pool:
        checks = [
            *(pool.submit(check_products, *each) for each in itertools.product(PACKED, TOLERANCE)),
            pool.submit(check_prefills),
            pool.submit(check_long_rows),
            *(pool.submit(check_engine, name) for name in PACKED),
        ]
        timed = cuts() if arguments.seconds else []
        compiled = [pool.submit(compile_cut, *cut) for cut in timed]
        wrong = sum(not ok for check in checks for ok in said(check))
        left_out = {why for one in compiled if (why := one.result())}
        print(f"{len(compiled)} kernels compiled; left out: {left_out}", flush=True)
    if timed:
        time_all(arguments.seconds)
    sys.exit(f"{wrong} checks failed" if wrong else 0)


def time_all(seconds: float) -> None:
    bandwidth = read_bandwidth_gb_s(DEVICE, repeats=20)
    print(f"read bandwidth {bandwidth:.0f} GB/s")
    with torch.inference_mode():
        time_products(bandwidth, time.monotonic() + seconds)


def said(check: Future) -> list[bool]:
    """Prints what a check found; one that broke off is one that failed, and the others go on."""
    try:
        found = check.result()
    except Exception as error:
        found = [(False, f"broke off: {error}")]
    for ok, text in found:
        print("ok  " if ok else "FAIL", text, flush=True)
    return [ok for ok, _ in found]


def relative(found, exact) -> float:
    return ((found.double() - exact).norm() / exact.norm()).item()


@torch.inference_mode()
def check_products(name: str, dtype) -> list[tuple[bool, str]]:
    """One row, some rows, gated, split columns and the weight itself: (fine, what was found)."""
    torch.manual_seed(0)
    parts = [PACKED[name].of(torch.randn(n, 1088, device=DEVICE)).matrix for n in (200, 40, 60)]
    pair = [PACKED[name].of(torch.randn(160, 1088, device=DEVICE)).matrix for _ in range(2)]
    weight, gates, worst = _stack(parts).lay(), _stack(pair).lay(), 0.0
    for rows in (1, 2, 8, 16, 33, 128):
        x = torch.randn(rows, 1088, device=DEVICE).to(dtype)
        exact = x.double() @ weight.dense().double().T
        worst = max(worst, relative(packed.product(x, weight), exact))
        both = (x.double() @ gates.dense().double().T).chunk(2, 1)
        out, fed = torch.empty(rows, 160, device=DEVICE, dtype=dtype), F.silu(both[0]) * both[1]
        options = {"gated": True, "act": "silu"}
        if rows == 1:
            packed.matvec(x, gates, out, **options)
        else:
            size = x.itemsize
            tiling = packed.tiling_of(rows, *gates.shape, gated=True, summed=False, size=size)
            packed.wide(x, gates, out, tiling=tiling, **options)
            tiling = packed.tiling_of(rows, 300, 1088, gated=False, summed=True, size=size)
            tiling = replace(tiling, splits=4)
            sums = torch.empty(4, rows, 300, device=DEVICE)
            worst = max(worst, relative(packed.wide(x, weight, sums, tiling=tiling).sum(0), exact))
        worst = max(worst, relative(out, fed))
        if name == "nvfp4" and 1 < rows <= 8 and dtype == torch.bfloat16:
            found = in_registers(x, weight), in_registers(x, gates, **options)
            worst = max(worst, relative(found[0], exact), relative(found[1], fed))
    dense = packed.dense(weight, dtype)
    same = torch.equal(dense, weight.dense(dtype))
    text = f"{name}, {dtype}: {worst:.1e}, dense equal: {same}"
    # NF4's values and scales are rounded to bfloat16, and their products: 4.7e-3 on a CPU.
    thrice = name == "nf4" and dtype == torch.bfloat16
    return [(worst < (5e-3 if thrice else TOLERANCE[dtype]) and same, text)]


def in_registers(x, weight, gated: bool = False, **options):
    """A product of few rows that stay in registers; its columns are split where it adds."""
    rows, n = len(x), len(weight) // (1 + gated)
    tiling = packed.skinny_tiling(weight, summed=not gated)
    if gated:
        out = torch.empty(rows, n, device=DEVICE, dtype=x.dtype)
        return packed.wide(x, weight, out, tiling=tiling, gated=True, **options)
    sums = torch.empty(tiling.splits, rows, n, device=DEVICE)
    return packed.wide(x, weight, sums, tiling=tiling, **options).sum(0)


@torch.inference_mode()
def check_prefills() -> list[tuple[bool, str]]:
    """Many rows by both ways; FP8 rounds weights and x."""
    found = []
    weight = PACKED["nvfp4"].of(torch.randn(512, 1024, device=DEVICE)).matrix.lay()
    x = torch.randn(300, 1024, device=DEVICE, dtype=torch.bfloat16)
    exact = x.double() @ weight.dense().double().T
    for by, limit in (("dequantise", 4e-3), ("fp8", 6e-2)):
        error = relative(packed_prefill.linear(x, weight, by=by), exact)
        found.append((error < limit, f"prefill by {by}: {error:.1e}"))
    return found


@torch.inference_mode()
def check_long_rows() -> list[tuple[bool, str]]:
    """One row in programs of four, eight and sixteen warps, with x in registers and without."""
    found = []
    for columns in (4096, 5120, 9728, 32768):
        weight = PACKED["nvfp4"].of(torch.randn(256, columns, device=DEVICE)).matrix.lay()
        x = torch.randn(1, columns, device=DEVICE, dtype=torch.bfloat16)
        error = relative(packed.product(x, weight), x.double() @ weight.dense().double().T)
        found.append((error < TOLERANCE[x.dtype], f"one row of {columns} columns: {error:.1e}"))
    return found


def check_engine(name: str) -> list[tuple[bool, str]]:
    """Greedy tokens of the engine's kernels are the eager decoder's, in float32."""
    decoder = random_decoder(ARCH, 0, DEVICE)
    quantise_decoder(decoder, name, skip=())
    prompt, params = list(range(40)), SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    found = []
    for backend in ("kernels", "eager"):
        engine = Engine(decoder, capacity=128, backend=backend)
        one = engine.generate([prompt], params)[0][0].tokens
        found.append((one, engine.generate([prompt], params, num_candidates=5)[0][4].tokens))
    return [(found[0] == found[1], f"{name}: greedy tokens of 1 and 5 rows")]


def cuts() -> list[tuple]:
    """(product, rows of x, its cut), the present cuts first for each product and number of rows."""
    sizes = itertools.product((4, 8), (3, 5, 8), (160, 264, 396, 9999), (True, False), (0, 128))
    plans = [packed.RowPlan(16, *size) for size in sizes]
    slabs = [(*cut, cut[3]) for cut in itertools.product((16, 32), (16, 32), (2, 3, 4), (2, 4, 8))]
    whole = [(128, 16, 3, 4, 1), (64, 32, 3, 4, 1), (64, 32, 4, 4, 1), (64, 16, 4, 4, 1)]
    found = []
    for name, (n, k, kind) in SHAPES.items():
        asked = {"gated": kind.get("gated", False), "summed": kind.get("summed", False)}
        now = packed.row_plan(n, k, summed=asked["summed"])
        found += [(name, 1, plan) for plan in [now, *plans]]
        for rows in (8, 16, 64):
            first = packed.tiling_of(rows, n, k, **asked)
            tiles = [*slabs, *whole] if rows < 64 else whole
            if rows == 8:
                found.append(
                    (name, 8, packed.skinny_tiling(one_weight(name), summed=asked["summed"]))
                )
            found += [(name, rows, tiling) for tiling in [first, *tilings(first, tiles, n, k)]]
    return found


def tilings(first, tiles: list[tuple], n: int, k: int):
    """Tilings of these sizes; where columns may be split, among two and four times as many
    programs as there are multiprocessors."""
    for rows, words, ahead, warps, slabs in tiles:
        tiling = replace(first, rows=rows, words=words, ahead=ahead, warps=warps, slabs=slabs)
        steps = k // (packed.WORD * words * slabs)
        most = {1} if first.splits == 1 else set(packed.PROGRAMS)
        for programs in most:
            yield replace(tiling, splits=max(1, min(steps, programs * rows // n)))


def call_of(name: str, rows: int, cut):
    """What multiplies by a weight as the cut says."""
    n, k, kind = SHAPES[name]
    out_rows = n // 2 if "gated" in kind else n
    options = {"pdl": True} | ({"gated": True, "act": "silu"} if "gated" in kind else {})
    splits = getattr(cut, "splits", 1)
    shape = (splits, rows, out_rows) if splits > 1 else (rows, out_rows)
    dtype = torch.float32 if splits > 1 else torch.bfloat16
    x, out = rows_of(rows, k), torch.empty(shape, device=DEVICE, dtype=dtype)
    if isinstance(cut, packed.RowPlan):
        options |= {"summed": kind.get("summed", False)}
        if "norm" in kind:  # of more rows it is not the product's
            options |= {"norm": torch.ones(k, device=DEVICE, dtype=torch.bfloat16), "eps": 1e-6}
        return partial(packed.matvec, x, out=out, plan=cut, **options)
    return partial(packed.wide, x, out=out, tiling=cut, **options)


def compile_cut(name: str, rows: int, cut) -> str | None:
    """Runs it once, so that its kernel lies in the compiler's cache; or why it does not run."""
    try:
        call_of(name, rows, cut)(one_weight(name))
    except Exception as error:  # of a cut that takes more memory than a program has
        return str(error).splitlines()[0][:80]
    return None


@functools.cache
def one_weight(name: str):
    n, k, _ = SHAPES[name]
    weight = torch.randn(n, k, device=DEVICE, dtype=torch.bfloat16)
    return PACKED["nvfp4"].of(weight).matrix.lay()


def time_products(bandwidth: float, until: float) -> None:
    """The cuts of each product, and the best two beside the present one."""
    for name, group in itertools.groupby(cuts(), lambda cut: cut[0]):
        weights, best = copies(name), {}
        for _, rows, cut in group:
            note(best, (rows, cut), call_of(name, rows, cut), weights, until)
        for rows in sorted({key[0] for key in best}):
            of = {key: us for key, us in best.items() if key[0] == rows}
            present = {type(cut): us for (_, cut), us in reversed(of.items())}
            for kind in {type(cut) for _, cut in of}:
                mine = [(us, cut) for (_, cut), us in of.items() if type(cut) is kind]
                for us, cut in sorted(mine, key=lambda item: item[0])[:2]:
                    share = weights[0].nbytes / us / 1e3 / bandwidth
                    now = present[kind]
                    print(f"{name}, {rows} rows: {us:.1f} us ({share:.2f}), now {now:.1f}: {cut}")


def copies(name: str) -> list:
    weight = one_weight(name)
    count = max(1, ROTATED // weight.nbytes)
    return [
        replace(weight, codes=weight.codes.clone(), scales=weight.scales.clone())
        for _ in range(count)
    ]


def rows_of(rows: int, k: int) -> torch.Tensor:
    return torch.randn(rows, k, device=DEVICE, dtype=torch.bfloat16)


def note(best: dict, key, call, weights: list, until: float) -> None:
    """Microseconds of a product over all copies, in a graph; cuts that do not fit are left out."""
    if time.monotonic() > until:
        return
    try:
        call(weights[0])
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for weight in weights:
                call(weight)
    except Exception as error:  # of a cut that takes more memory than a program has
        print(f"     left out {key}: {str(error).splitlines()[0][:80]}")
        return
    times = []
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / len(weights))
    best[key] = statistics.median(times)


if __name__ == "__main__":
    main()
