"""LoRA adapters as plain data: low-rank changes of a decoder's matrices (P1-3.1).

Contract. An `Adapter` maps (layer, projection) to the `LowRank` change of that matrix,
W + scale · b·a. It is not changed once made: its content hash is the version of the weights that it
gives, and goes into cache keys and sampled tokens. Reading and writing files is `ember.lora.peft`.
"""

import hashlib
import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ember.model.decoder import Decoder
from ember.model.linear import dense_weight, is_linear
from ember.records.errors import EmberError

Key = tuple[int, str]
"""Layer and projection: (0, "q_proj")."""

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


class BadAdapter(EmberError):
    """An adapter that cannot be read or does not fit the model; nothing was changed."""


@dataclass(frozen=True)
class LowRank:
    """W = W0 + scale · b·a of one projection: a (r, in), b (out, r). Not to be changed in place."""

    a: Tensor
    b: Tensor
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def delta(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """scale · b·a (out, in), computed in `dtype`."""
        return self.scale * (self.b.to(dtype) @ self.a.to(dtype))


class Adapter(Mapping[Key, LowRank]):
    """Changes of a decoder's projections, in the order of layers, with a content hash.

    `name` is for people; two adapters of equal content have equal hashes whatever their names.
    `reach` bounds what each part changes a weight by.
    """

    def __init__(self, parts: Mapping[Key, LowRank], name: str = "adapter"):
        if not parts:
            raise BadAdapter(f"adapter {name}: it changes nothing.\nGive it a projection or more.")
        self.name = name
        self._parts = {key: _checked(name, key, parts[key]) for key in sorted(parts)}
        self.reach = _reach(name, self._parts)
        self._hash: str | None = None

    def __getitem__(self, key: Key) -> LowRank:
        return self._parts[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    # A mapping compares by content, which tensors do not support: adapters are told apart by hash.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @property
    def hash(self) -> str:
        """SHA-256 of the factors as float32 and of the scales, whatever format they came in."""
        if self._hash is None:
            self._hash = _hash(self._parts)
        return self._hash

    @property
    def rank(self) -> int:
        """The greatest rank of a part."""
        return max(part.rank for part in self._parts.values())

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that it changes, ascending."""
        return tuple(sorted({layer for layer, _ in self._parts}))

    @property
    def projections(self) -> tuple[str, ...]:
        """Projections that it changes, in the order of a layer's computation."""
        found = {name for _, name in self._parts}
        return tuple(name for name in (*ATTENTION, *MLP) if name in found)

    def scaled(self, factor: float) -> "Adapter":
        """The adapter with all scales times `factor`."""
        if factor == 1.0:
            return self
        parts = {k: LowRank(p.a, p.b, p.scale * factor) for k, p in self._parts.items()}
        return Adapter(parts, f"{self.name} x {factor:g}")

    def only(
        self, *, layers: Iterable[int] | None = None, projections: Iterable[str] | None = None
    ) -> "Adapter | None":
        """The part of it in these layers and projections (all by default); None if there is none.

        A pipeline stage merges `only(layers=range(…))` of its own layers.
        """
        layers = None if layers is None else set(layers)
        names = None if projections is None else set(projections)
        parts = {
            (layer, name): part
            for (layer, name), part in self._parts.items()
            if (layers is None or layer in layers) and (names is None or name in names)
        }
        return Adapter(parts, self.name) if parts else None


def linears(decoder: Decoder) -> dict[Key, nn.Module]:
    """The linear layers that an adapter may change; one that has branches, without them."""
    return {
        (index, path.rpartition(".")[2]): getattr(module, "base", module)
        for index, layer in enumerate(decoder.layers)
        for path, module in layer.named_modules()
        if is_linear(module)
    }


def check_fits(adapter: Adapter, decoder: Decoder) -> None:
    """Raises BadAdapter unless every part is of a matrix that the decoder has, of its shape, and
    its change stays within the decoder's number format."""
    there, arch = linears(decoder), decoder.arch
    for (layer, name), part in adapter.items():
        if layer >= arch.num_layers:
            raise BadAdapter(
                f"adapter {adapter.name} changes layer {layer}, but the model has {arch.num_layers}"
                " layers.\nGive an adapter that was trained on this base model."
            )
        linear = there.get((layer, name))
        if linear is None:
            raise BadAdapter(
                f"adapter {adapter.name} changes {name}, which a layer of this {arch.model_type} "
                f"does not have (it has {', '.join(dict.fromkeys(n for _, n in there))}).\n"
                "Give an adapter that was trained on this base model."
            )
        weight = dense_weight(linear)
        found, wanted = (part.b.shape[0], part.a.shape[1]), tuple(weight.shape)
        if found != wanted:
            raise BadAdapter(
                f"adapter {adapter.name}: layer {layer} {name} changes a matrix of {found}, the "
                f"model's is {wanted}.\nGive an adapter that was trained on this base model."
            )
        _check_range(adapter.name, layer, name, adapter.reach[layer, name], weight)


def draw_adapter(
    decoder: Decoder,
    *,
    rank: int,
    alpha: float,
    projections: Sequence[str] = ATTENTION,
    seed: int = 0,
    b_std: float = 0.0,
    name: str = "drawn",
) -> Adapter:
    """A seeded adapter of every layer: a uniform as PEFT begins, b zero or normal with `b_std`.

    Drawn on the CPU in float32, so that it is the same wherever the decoder is.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = {}
    for (layer, projection), linear in linears(decoder).items():
        if projection not in projections:
            continue
        out, width = dense_weight(linear).shape
        bound = width**-0.5  # kaiming_uniform with a = sqrt(5)
        a = (2 * torch.rand(rank, width, generator=generator) - 1) * bound
        b = torch.randn(out, rank, generator=generator) * b_std
        parts[layer, projection] = LowRank(a, b, alpha / rank)
    if len({projection for _, projection in parts}) != len(set(projections)):
        raise BadAdapter(
            f"projections {', '.join(projections)} are asked for, but a layer has "
            f"{', '.join(dict.fromkeys(n for _, n in linears(decoder)))}.\nChoose of those."
        )
    return Adapter(parts, name)


def _checked(name: str, key: Key, part: LowRank) -> LowRank:
    where = f"adapter {name}: layer {key[0]} {key[1]}"
    for tensor, role in ((part.a, "A"), (part.b, "B")):
        if tensor.ndim != 2 or not tensor.is_floating_point():
            raise BadAdapter(
                f"{where}: {role} is {tensor.dtype} of shape {tuple(tensor.shape)}.\n"
                "Factors are matrices of floating-point numbers; save the adapter again."
            )
    if part.a.shape[0] != part.b.shape[1] or part.a.shape[0] < 1:
        raise BadAdapter(
            f"{where}: A {tuple(part.a.shape)} and B {tuple(part.b.shape)} have no common rank.\n"
            "A is (rank, in) and B (out, rank); save the adapter again."
        )
    return part


def _reach(name: str, parts: Mapping[Key, LowRank]) -> dict[Key, float]:
    """Bounds of |scale · b·a|, of every number: NaN and infinity are refused."""
    # The least and the greatest tell both, in one pass; one transfer, for they may be on a device.
    ends = torch.stack(
        [torch.stack(x.aminmax()).double() for part in parts.values() for x in (part.a, part.b)]
    )
    largest = ends.abs().amax(1).tolist()  # NaN if one is
    out = {}
    for (key, part), a, b in zip(parts.items(), largest[::2], largest[1::2], strict=True):
        out[key] = abs(part.scale) * part.rank * a * b
        if not (math.isfinite(a) and math.isfinite(b) and math.isfinite(part.scale)):
            raise BadAdapter(
                f"adapter {name}: layer {key[0]} {key[1]} holds NaN or infinity.\n"
                "The training that made it diverged; give an earlier state of it."
            )
    return out


def _check_range(name: str, layer: int, projection: str, reach: float, weight: Tensor) -> None:
    """Refuses changes after which a weight could overflow (float16 ends at 65504)."""
    limit = torch.finfo(weight.dtype).max
    if reach > limit / 100 and not reach + float(weight.detach().abs().max()) < limit:
        raise BadAdapter(
            f"adapter {name}: layer {layer} {projection} may change weights by {reach:.3g}, which "
            f"{weight.dtype} cannot hold (largest {limit:.3g}).\n"
            "Use a smaller scale, or bfloat16 or float32 weights."
        )


def _hash(parts: Mapping[Key, LowRank]) -> str:
    digest = hashlib.sha256()
    for (layer, name), part in parts.items():
        digest.update(f"{layer} {name} ".encode() + struct.pack("<d", part.scale))
        for tensor in (part.a, part.b):
            plain = tensor.detach().to("cpu", torch.float32).contiguous()
            digest.update(f"{tuple(plain.shape)}\n".encode())
            digest.update(plain.numpy().tobytes())
    return digest.hexdigest()
