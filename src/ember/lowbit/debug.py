"""Numerical debugging of packed layers: which layer, which scale, from which token on (L-4).

Contract. Every tool feeds both sides the same numbers, so that what it finds is of one place and
not of everything before it. `apply(module, x)` is how the path under test runs a module.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from ember.model.decoder import Attention, Decoder
from ember.model.linear import is_linear
from ember.model.packed import PackedLinear, PackedMatrix

Apply = Callable[..., Tensor]


def by_module(module: nn.Module, *inputs) -> Tensor:
    """The module's own forward."""
    return module(*inputs)


@dataclass(frozen=True)
class Difference:
    """One call of a linear layer or attention. `rel`: largest difference over largest reference."""

    call: int
    layer: str
    max_abs: float
    ref_max: float
    got_max: float
    rel: float


@torch.inference_mode()
def compare_layers(
    got: Decoder,
    reference: Decoder,
    tokens: Tensor,
    apply: Apply = by_module,
    max_calls: int | None = None,
) -> list[Difference]:
    """Each linear layer and attention of `got` on the inputs that the same module of `reference`
    has, in the order in which they end: an attention after its projections.

    `tokens` (B, T). Non-finite outputs of `got` make `rel` infinite.
    """
    found: list[Difference] = []
    theirs = dict(got.named_modules())

    def look(name: str, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        if max_calls is None or len(found) < max_calls:
            answer = apply(theirs[name], *inputs)
            found.append(_difference(len(found), name, answer, output))

    with _hooked(reference, look):
        reference.logits(reference(tokens))
    return found


def first_exploding(found: Sequence[Difference], threshold: float) -> Difference | None:
    """The first layer whose relative difference is above the threshold; None if there is none."""
    return next((one for one in found if not one.rel <= threshold), None)


def _difference(call: int, layer: str, got: Tensor, reference: Tensor) -> Difference:
    got, reference = got.float(), reference.float()
    finite = bool(got.isfinite().all())
    most, apart = float(reference.abs().max()), float((got - reference).abs().max())
    rel = apart / max(most, 1e-30) if finite else math.inf
    return Difference(call, layer, apart, most, float(got.abs().max()), rel)


@contextmanager
def _hooked(decoder: Decoder, look) -> Iterator[None]:
    handles = [
        module.register_forward_hook(partial(look, name))
        for name, module in decoder.named_modules()
        if is_linear(module) or isinstance(module, Attention)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Scales:
    """What a layer makes of its block scales. `worst`: the largest |got / expected - 1|."""

    right: bool
    worst: float
    diagnosis: str


def check_scales(layer: nn.Module, scales: Tensor, apply: Apply = by_module) -> Scales:
    """What `layer` makes of E4M3 block scales, from its answer to one input alone.

    Every weight of the layer (N, K) is its block's scale (all codes stand for 1), `scales`
    (N, K / block) float8_e4m3fn. Inputs are one-hot by block, so that each output is one scale; the
    ratio to what it should be tells how it was read.
    """
    rows, blocks = scales.shape
    block = layer.in_features // blocks
    x = torch.eye(blocks, device=scales.device).repeat_interleave(block, 1)
    x[:, torch.arange(layer.in_features) % block != 0] = 0.0
    got = apply(layer, x).double().T.reshape(rows, blocks)
    expected = scales.double()
    worst = float((got / expected - 1).abs().nan_to_num(math.inf).max())
    if worst < 1e-2:  # an output in bfloat16 is rounded by less
        return Scales(True, worst, "scales are read as E4M3")
    return Scales(False, worst, _misread(got, expected, scales.view(torch.uint8).double()))


def _misread(got: Tensor, expected: Tensor, integers: Tensor) -> str:
    """What wrong values of scales come from."""

    def constant(of: Tensor) -> float | None:
        ratio = (got / of).nan_to_num(math.inf)
        middle = float(ratio.median())
        return middle if bool(((ratio / middle - 1).abs() < 1e-2).all()) else None

    if not bool(got.isfinite().all()):
        return "outputs are non-finite: scales overflow, or are NaN"
    if constant(integers) is not None:
        return "scales are read as integers: decode the bytes as E4M3"
    factor = constant(expected)
    if factor is not None and factor > 0:
        power = math.log2(factor)
        if abs(power - round(power)) < 0.01 and abs(power) > 20:
            return f"scales are 2^{round(power)} of theirs: the exponent's bias was not changed"
        return f"all scales are {factor:.4g} of theirs: the tensor's scale is left out or doubled"
    return "scales are not those of their blocks: look at their layout (linear or swizzled)"


@dataclass(frozen=True)
class FirstToken:
    """A path's logits for the token after a prompt, beside the first path's."""

    path: str
    nan: int
    infinite: int
    top: tuple[int, ...]  # the ten most likely ids
    overlap: int  # of them with the first path's ten
    kl: float  # from the first path, in nats; infinite where logits are non-finite


@torch.no_grad()  # a path may ask for gradients all the same
def first_tokens(
    paths: Mapping[str, Callable[[Tensor], Tensor]], tokens: Tensor
) -> list[FirstToken]:
    """The first generated token by every path; the first is the reference.

    A path gives logits (V,) for tokens (1, T).
    """
    logits = {name: path(tokens).detach().float().flatten() for name, path in paths.items()}
    reference = next(iter(logits.values()))
    ten = set(reference.topk(10).indices.tolist())
    found = []
    for name, one in logits.items():
        top = tuple(one.nan_to_num(-math.inf).topk(10).indices.tolist())
        kl = math.inf
        if bool(one.isfinite().all()):
            p, q = reference.log_softmax(-1), one.log_softmax(-1)
            kl = float((p.exp() * (p - q)).sum())
        nan, infinite = int(one.isnan().sum()), int(one.isinf().sum())
        found.append(FirstToken(name, nan, infinite, top, len(ten & set(top)), kl))
    return found


def as_integers(layer: PackedLinear) -> PackedMatrix:
    """The planted fault: a layer's weight with the bits of its E4M3 scales taken for integers."""
    matrix = layer.matrix
    return replace(matrix, scales=matrix.scales.float())
