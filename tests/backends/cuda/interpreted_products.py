"""Products of a few rows against torch, in float32, under Triton's interpreter."""

import types

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from ember.backends.cuda.products import (
    NORM_TILE,
    Normed,
    Plan,
    Tiling,
    add_normed,
    embed,
    matvec,
    skinny,
    wide,
)
from ember.backends.packing import Norm
from ember.model.architecture import NORMS
from ember.model.decoder import ACTIVATION_FUNCTIONS, make_norm

EPS = 1e-5
TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def expect(x, weight, norm=None, bias=None, residual=None, gated=False, act=""):
    if norm is not None:
        x = F.rms_norm(x, x.shape[1:], norm, EPS)
    out = F.linear(x, weight, bias)
    if gated:
        gate, up = out.chunk(2, 1)
        out = ACTIVATION_FUNCTIONS[act](gate) * up
    elif act:
        out = ACTIVATION_FUNCTIONS[act](out)
    return out if residual is None else out + residual


# Sizes that the tiles divide, and sizes that they do not.
SIZES = [(64, 128), (70, 96), (33, 40)]
VARIANTS = {
    "plain": {},
    "normed": {"norm"},
    "residual": {"residual"},
    "all": {"norm", "bias", "residual"},
    "gated": {"norm", "gated"},
    "gated with bias": {"norm", "gated", "bias", "gelu_tanh"},
    "gelu with bias": {"norm", "bias", "gelu"},
}


def case(rows: int, n: int, k: int, variant: str) -> dict:
    has = VARIANTS[variant]
    width = 2 * n if "gated" in has else n
    return {
        "x": draw(rows, k),
        "weight": draw(width, k, seed=1) * k**-0.5,
        "norm": 1 + draw(k, seed=2) if "norm" in has else None,
        "bias": draw(width, seed=3) if "bias" in has else None,
        "residual": draw(rows, n, seed=4) if "residual" in has else None,
        "gated": "gated" in has,
        "act": next(
            (act for act in ("gelu", "gelu_tanh") if act in has), "silu" * ("gated" in has)
        ),
    }


@pytest.mark.parametrize("ahead", [1, 3])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("sizes", SIZES)
def test_matvec(sizes, variant, ahead):
    given = case(1, *sizes, variant)
    out = torch.full((1, sizes[0]), torch.nan)
    plan = Plan(rows=4, columns=32, ahead=ahead, warps=1)
    norm = None if given["norm"] is None else Norm(given["norm"], None)
    matvec(given.pop("x"), given.pop("weight"), out, plan=plan, eps=EPS, **given | {"norm": norm})
    torch.testing.assert_close(out, expect(**case(1, *sizes, variant)), **TOLERANCE)


def normed_by(kind: str, k: int, seed: int) -> torch.nn.Module:
    """A norm of the kind over k numbers, none of its weights trivial."""
    module = make_norm(types.SimpleNamespace(norm=kind, norm_eps=EPS), k)
    for number, parameter in enumerate(module.parameters()):
        parameter.data = 1 + draw(k, seed=seed + number)
    return module


sizes = some.integers(1, 70)
plans = some.builds(
    Plan,
    rows=some.sampled_from([4, 8]),
    columns=some.sampled_from([16, 32]),
    ahead=some.integers(1, 5),
    warps=some.just(1),
)
few = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@few
@given(
    sizes=some.tuples(sizes, sizes, sizes),
    kind=some.sampled_from([*NORMS]),
    act=some.sampled_from(["", "gelu", "gelu_tanh"]),
    biases=some.tuples(some.booleans(), some.booleans()),
    centre=some.sampled_from([0.0, 30.0]),
    plan=plans,
)
@torch.no_grad()
def test_two_products_of_an_input_through_norms_of_their_own(
    sizes, kind, act, biases, centre, plan
):
    k, *widths = sizes
    x = centre + draw(1, k)
    norms = [normed_by(kind, k, seed) for seed in (10, 20)]
    weights = [draw(n, k, seed=n) * k**-0.5 for n in widths]
    offsets = [draw(n, seed=5) if has else None for n, has in zip(widths, biases, strict=True)]
    outs = [torch.full((1, n), torch.nan) for n in widths]
    beside = (outs[1], weights[1], offsets[1], Norm.of(norms[1]))
    how = {"plan": plan, "kind": kind, "eps": EPS, "act": act}
    first = Norm.of(norms[0])
    matvec(x, weights[0], outs[0], norm=first, bias=offsets[0], beside=beside, **how)
    for out, norm, weight, bias, by in zip(outs, norms, weights, offsets, ("", act), strict=True):
        close = {"atol": 2e-5 * max(1.0, centre), "rtol": 1e-4}
        torch.testing.assert_close(out, expect(norm(x), weight, bias=bias, act=by), **close)


@few
@given(
    sizes=some.tuples(sizes, sizes, sizes),
    biases=some.tuples(some.booleans(), some.booleans()),
    plan=plans,
)
def test_two_products_are_added_to_the_residual_stream(sizes, biases, plan):
    n, *columns = sizes
    inputs = [draw(1, k, seed=7) for k in columns]
    weights = [draw(n, k, seed=8) * k**-0.5 for k in columns]
    offsets = [draw(n, seed=at) if has else None for at, has in zip((1, 2), biases, strict=True)]
    out = draw(1, n, seed=9)
    terms = [expect(*term) for term in zip(inputs, weights, [None] * 2, offsets, strict=True)]
    expected = out + sum(terms)
    more = (inputs[1], weights[1], offsets[1])
    matvec(inputs[0], weights[0], out, plan=plan, bias=offsets[0], more=more, residual=out)
    torch.testing.assert_close(out, expected, **TOLERANCE)


@pytest.mark.parametrize("kind", NORMS)
@torch.no_grad()
def test_a_gated_product_of_an_input_through_a_norm_of_any_kind(kind):
    x, weight, norm = draw(1, 70), 0.1 * draw(60, 70), normed_by(kind, 70, 3)
    out, plan = torch.full((1, 30), torch.nan), Plan(rows=4, columns=32, ahead=2, warps=1)
    how = {"kind": kind, "eps": EPS, "gated": True, "act": "silu"}
    matvec(x, weight, out, plan=plan, norm=Norm.of(norm), **how)
    expected = expect(norm(x), weight, gated=True, act="silu")
    torch.testing.assert_close(out, expected, **TOLERANCE)


def test_two_products_at_once_have_no_gate():
    x, weight = draw(1, 32), draw(32, 32)
    plan = Plan(rows=4, columns=32, ahead=2, warps=1)
    with pytest.raises(ValueError, match="two products at once"):
        matvec(x, weight, draw(1, 16), plan=plan, gated=True, more=(x, weight, None))
    with pytest.raises(ValueError, match="nothing of the kernel before"):
        matvec(x, weight, draw(1, 32), plan=plan, ready=True)


@pytest.mark.parametrize("warps", [1, 2])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("rows", [2, 17])
def test_skinny(rows, sizes, variant, warps):
    given = case(rows, *sizes, variant)
    n, k = sizes
    x, norm = given.pop("x"), given.pop("norm")
    if norm is not None:
        normed = Normed(rows, k, torch.float32, torch.device("cpu"))
        embed(torch.arange(rows), x, torch.empty_like(x), normed, norm)
    out = torch.full((rows, n), torch.nan)
    plan = Plan(rows=16, columns=16, ahead=2, warps=warps)
    weight = given.pop("weight")
    skinny(x if norm is None else normed, weight, out, plan=plan, eps=EPS, **given)
    torch.testing.assert_close(out, expect(**case(rows, *sizes, variant)), **TOLERANCE)


@pytest.mark.parametrize("tile", [16, 32])
def test_a_product_prepares_the_norm_of_the_next(tile):
    x, weight, norm = draw(3, 64), 0.1 * draw(100, 64, seed=1), 1 + draw(100, seed=2)
    residual = draw(3, 100, seed=3)
    normed = Normed(3, 100, torch.float32, torch.device("cpu"))
    normed.squares.fill_(torch.nan)  # from an earlier producer with other tiles
    plan = Plan(rows=tile, columns=32, ahead=2, warps=1)
    out = residual.clone()  # in place, as the residual stream is
    skinny(x, weight, out, plan=plan, residual=out, normed=normed, next_norm=norm)
    expected = expect(x, weight, residual=residual)
    torch.testing.assert_close(out, expected, **TOLERANCE)
    torch.testing.assert_close(normed.scaled, expected * norm, **TOLERANCE)
    squares = normed.squares[: normed.tiles].sum(0)
    torch.testing.assert_close(squares, expected.square().sum(1), **TOLERANCE)
    head = draw(50, 100, seed=4)
    logits = skinny(normed, head, torch.empty(3, 50), plan=plan, eps=EPS)
    torch.testing.assert_close(logits, expect(expected, head, norm), **TOLERANCE)


def test_a_row_is_the_same_in_any_batch():
    x, weight = draw(5, 64), draw(32, 64, seed=1)
    plan = Plan(rows=16, columns=16, ahead=2, warps=2)
    together = skinny(x, weight, torch.empty(5, 32), plan=plan)
    for row in range(5):
        alone = skinny(x[row : row + 1], weight, torch.empty(1, 32), plan=plan)
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize("variant", ["plain", "gated", "gated with bias", "gelu with bias"])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("rows", [9, 33])
def test_wide(rows, sizes, variant):
    given = case(rows, *sizes, variant) | {"norm": None}
    out = torch.full((rows, sizes[0]), torch.nan)
    tiling = Tiling(batch=16, rows=32, columns=32, ahead=2, warps=1)
    parts = {name: given[name] for name in ("bias", "gated", "act")}
    wide(given["x"], given["weight"], out, tiling=tiling, **parts)
    torch.testing.assert_close(out, expect(**given), **TOLERANCE)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("splits", [1, 3, 5])  # of four blocks: some have none to read
def test_sums_of_split_columns_are_added_and_normed(splits, bias):
    x, weight, residual = draw(9, 100), 0.1 * draw(70, 100, seed=1), draw(9, 70, seed=2)
    norm, offset = 1 + draw(70, seed=3), draw(70, seed=4) if bias else None
    sums = torch.full((splits, 9, 70), torch.nan)
    wide(x, weight, sums, tiling=Tiling(16, 32, 32, 2, 1, splits))
    stream, normed = residual.clone(), torch.full((9, 70), torch.nan)
    add_normed(stream, [(Norm(norm, None), normed)], eps=EPS, parts=sums, bias=offset)
    expected = expect(x, weight, bias=offset, residual=residual)
    torch.testing.assert_close(stream, expected, **TOLERANCE)
    torch.testing.assert_close(normed, F.rms_norm(expected, (70,), norm, EPS), **TOLERANCE)
    again = torch.full((9, 70), torch.nan)
    add_normed(stream, [(Norm(norm, None), again)], eps=EPS)  # nothing to add
    assert torch.equal(again, normed)


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("post", [True, False])
@pytest.mark.parametrize("kind", NORMS)
def test_norms_of_every_kind_of_the_sum_and_of_what_is_added(kind, post, count):
    arch = types.SimpleNamespace(norm=kind, norm_eps=EPS)
    modules = [make_norm(arch, 70) for _ in range(3)]
    for number, module in enumerate(modules):
        for parameter in module.parameters():
            parameter.data = 1 + draw(70, seed=number + parameter.numel())
    sums, residual, offset = draw(2, 9, 70), draw(9, 70, seed=2), draw(70, seed=4)
    stream, outs = residual.clone(), torch.full((count, 9, 70), torch.nan)
    norms = [(Norm.of(module), out) for module, out in zip(modules, outs, strict=False)]
    after = Norm.of(modules[2]) if post else None
    add_normed(stream, norms, eps=EPS, kind=kind, parts=sums, bias=offset, post=after)
    added = sums.sum(0) + offset
    expected = residual + (modules[2](added) if post else added)
    torch.testing.assert_close(stream, expected, **TOLERANCE)
    for module, out in zip(modules, outs, strict=False):
        torch.testing.assert_close(out, module(expected), **TOLERANCE)


@pytest.mark.parametrize("wrong", [{"gated": True}, {"bias": torch.zeros(32)}])
def test_split_columns_take_neither_gate_nor_bias(wrong):
    with pytest.raises(ValueError, match="without gate and bias"):
        wide(
            *(draw(9, 64), draw(64, 64), torch.zeros(2, 9, 32)),
            tiling=Tiling(16, 32, 32, 2, 1, splits=2),
            **wrong,
        )


def test_tiles_too_small_for_a_norm_are_an_error():
    x, weight = draw(2, 64), draw(32, 64)
    normed, out = Normed(2, 32, torch.float32, torch.device("cpu")), torch.empty(2, 32)
    plan = Plan(rows=NORM_TILE // 2, columns=16, ahead=2, warps=1)
    with pytest.raises(ValueError, match="tiles of 16 rows or more"):
        skinny(x, weight, out, plan=plan, normed=normed, next_norm=x[0])
