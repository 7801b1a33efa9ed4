"""The merging kernel against plain operators, under Triton's interpreter."""

import pytest
import torch

from ember.lora import kernels, merge
from ember.lora.kernels import Launch, Matrix, Tile, begin_compiling, make_ready, padded_rank
from ember.lora.merge import Merger
from tests.lora.adapters import adapter_of, bits, equal_bits, merged_by_hand
from tests.tiny import wild

launch = merge._launch
TILES = [Tile(16, 32, 4), Tile(8, 16, 4, 2)]


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("dot", ["", "ieee"])
@pytest.mark.parametrize("sides", ["new", "old", "both"])
@pytest.mark.parametrize("shapes", [[(32, 48), (50, 33), (7, 100)], [(32, 64), (64, 32)]])
def test_a_launch_over_matrices_of_many_shapes(shapes, sides, dot, tile):
    rank, old_rank = (16, 16) if dot else (5, 3)
    matrices, wanted = [], []
    for seed, (out, width) in enumerate(shapes):
        source, target = draw(out, width, seed=seed), torch.empty(out, width)
        expected, factors = source.double(), {"new": None, "old": None}
        for side, r, sign in (("new", rank, 1), ("old", old_rank, -1)):
            if sides in (side, "both"):
                a, b = draw(r, width, seed=10 + seed), draw(r, out, seed=20 * sign + seed)
                factors[side] = a, b
                expected = expected + sign * b.double().t() @ a.double()
        matrices.append(Matrix(target, source, **factors))
        wanted.append(expected)
    Launch(matrices, tile, dot).run()
    for matrix, expected in zip(matrices, wanted, strict=True):
        assert torch.allclose(matrix.target.double(), expected, atol=1e-5)


@pytest.mark.parametrize("keep", ["device", "host", "none"])
@pytest.mark.parametrize("rank", [3, 20])
def test_the_merger_with_kernels_equals_the_sum(rank, keep):
    decoder = wild()
    before, merger = bits(decoder), Merger(decoder, keep=keep)
    assert merger.uses_kernels
    first, second = adapter_of(decoder, 1, rank=4), adapter_of(decoder, 2, rank=rank)
    second = second.only(layers=[0, 2])
    expected = merged_by_hand(decoder, second)
    for adapter in (first, second, first, second):
        merger.swap(adapter)
    for weight, wanted in zip(decoder.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(weight.double(), wanted, atol=1e-5)
    merger.swap(None)
    assert equal_bits(decoder, before) == (keep != "none")


class Recorder:
    """Stands in for a kernel and notes what is compiled for."""

    def __init__(self):
        self.asked = []

    def __getitem__(self, grid):
        return lambda *tensors, **options: self.asked.append(options)

    def warmup(self, *types, grid, **options):
        self.asked.append(options)


@pytest.mark.parametrize("width", [256, 257])
@pytest.mark.parametrize("rank", [8, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_compiled_early_is_what_runs(dtype, rank, width, monkeypatch):
    weight = torch.zeros(256, width, dtype=dtype)
    a, b = torch.zeros(rank, width), torch.zeros(rank, 256)
    recorder = Recorder()
    monkeypatch.setattr(kernels, "_merge", recorder)
    begin_compiling([weight], rank).join()
    make_ready([weight], [(rank, 0), (rank, rank), (0, rank)])
    for new, old in (((a, b), None), ((a, b), (a, b)), (None, (a, b))):
        Launch([Matrix(weight, weight, new, old)]).run()
    begun, *ready = recorder.asked
    assert ready[:3] == ready[3:]
    assert begun == ready[0]


def test_an_adapter_is_compiled_for_once_and_before_it_is_swapped(monkeypatch):
    merger, ranks = Merger(wild(), keep="host"), []
    monkeypatch.setattr(kernels, "make_ready", lambda weights, pairs: ranks.append(pairs))
    for rank in (3, 3, 20):
        merger.prepare(adapter_of(merger.decoder, rank=rank))
    assert ranks == [[(3, 0), (3, 3)], [(32, 0), (32, 32)]]


def test_a_pair_that_is_used_stays_prepared(monkeypatch):
    monkeypatch.setattr(merge, "KEPT_LAUNCHES", 3)
    planned = []
    monkeypatch.setattr(merge, "_launch", lambda *a: planned.append(1) or launch(*a))
    decoder = wild()
    merger = Merger(decoder)
    often = merger.prepare(adapter_of(decoder, 1))
    for seed in range(6):  # others come from folders and never again
        merger.swap(often)
        merger.swap(adapter_of(decoder, 10 + seed))
    assert len(planned) == 1 + 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype):
    decoder = wild(dtype=dtype)
    adapter = adapter_of(decoder)
    expected = merged_by_hand(decoder, adapter)
    before, merger = bits(decoder), Merger(decoder)
    merger.swap(adapter)
    found = decoder.layers[1].self_attn.k_proj.weight
    wanted = expected.layers[1].self_attn.k_proj.weight
    assert (found.double() - wanted).abs().max() <= 2 * torch.finfo(dtype).eps
    if dtype == torch.float16:  # the interpreter cuts bfloat16 off, a device rounds it
        assert (found == wanted.to(dtype)).float().mean() > 0.99
    merger.swap(None)
    assert equal_bits(decoder, before)


def test_ranks_are_padded_for_products_only():
    assert [padded_rank(rank) for rank in (1, 8, 16, 17, 64)] == [1, 8, 16, 32, 64]
