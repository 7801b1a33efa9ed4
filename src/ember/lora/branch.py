"""Adapters beside the weights: base(x) + s·(x·Aᵀ)·Bᵀ, for training and exact reference (P1-3.1).

Contract. `Branches` puts a `LoraLinear` in place of each adapted projection of a decoder; weights,
parameter names and the decoder's code stay as they are. Several adapters may be attached, one is
active. The branch is computed in its factors' format (float32), the base in its own, and the sum is
rounded to the base's. The engine's fast form packs plain linear layers only: merge for it.
"""

import re
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ember.lora.adapter import Adapter, BadAdapter, Key, LowRank, check_fits
from ember.model.decoder import Decoder
from ember.model.linear import bias_of, dense_weight
from ember.model.version import changed, digest


class LoraLinear(nn.Linear):
    """A linear layer (its weight and bias are the base's own) with low-rank branches by name."""

    def __init__(self, base: nn.Linear):
        nn.Module.__init__(self)  # not Linear's: nothing is allocated
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = dense_weight(base), bias_of(base)
        self._base = (base,)  # in a tuple, or its parameters would be named twice
        self.lora_a, self.lora_b = nn.ParameterDict(), nn.ParameterDict()
        self.scales: dict[str, float] = {}
        self.active: str | None = None
        self.train(base.training)

    @property
    def base(self) -> nn.Linear:
        """The layer without branches."""
        return self._base[0]

    @property
    def version_note(self) -> str:
        """The branch that takes part, by its content; see `ember.model.version`."""
        if self.active not in self.scales:
            return ""
        a, b = (digest(factor).hex() for factor in self.factors(self.active))
        return f"{a} {b} {self.scales[self.active]}"

    def forward(self, x: Tensor) -> Tensor:
        out = F.linear(x, self.weight, self.bias)
        if self.active not in self.scales:
            return out
        a, b = self.factors(self.active)
        branch = F.linear(F.linear(x.to(a.dtype), a), b) * self.scales[self.active]
        return (out + branch).to(out.dtype)

    def factors(self, name: str) -> tuple[nn.Parameter, nn.Parameter]:
        """A (r, in) and B (out, r) of an adapter."""
        return self.lora_a[_entry(name)], self.lora_b[_entry(name)]


class Branches:
    """The un-merged adapters of one decoder, by name."""

    def __init__(self, decoder: Decoder):
        self.decoder = decoder
        self._keys: dict[str, list[Key]] = {}
        self._wrapped: dict[Key, tuple[nn.Module, str]] = {}  # parent and its attribute
        self.active: str | None = None

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def attach(self, name: str, adapter: Adapter, *, trainable: bool = False) -> None:
        """Adds an adapter (a copy of it) under a name, not active. Raises BadAdapter."""
        check_name(name)
        if name in self._keys:
            raise BadAdapter(f"an adapter {name} is attached already.\nDetach it first.")
        check_fits(adapter, self.decoder)
        self._keys[name] = list(adapter)
        for key, part in adapter.items():
            linear = self._linear(key)
            place = linear.weight.device
            # A deep base computes in 16 bits; small changes of factors would be lost in them.
            kind = torch.float64 if linear.weight.dtype == torch.float64 else torch.float32
            for store, tensor in ((linear.lora_a, part.a), (linear.lora_b, part.b)):
                copy = tensor.detach().to(place, kind, copy=True)
                store[_entry(name)] = nn.Parameter(copy, requires_grad=trainable)
            linear.scales[name] = part.scale

    def activate(self, name: str | None) -> None:
        """Makes one adapter, or none, take part in the forward."""
        if name is not None:
            self._check_there(name)
        self.active = name
        for parent, attribute in self._wrapped.values():
            getattr(parent, attribute).active = name
        changed(self.decoder, ("branch", name))

    def parameters(self, name: str) -> list[nn.Parameter]:
        """Factors of an adapter, for an optimizer: A and B of each projection in order."""
        self._check_there(name)
        return [part for key in self._keys[name] for part in self._linear(key).factors(name)]

    def adapter(self, name: str) -> Adapter:
        """A copy of an adapter as it is now: to save, merge, or correct KV by."""
        self._check_there(name)
        parts = {}
        for key in self._keys[name]:
            linear = self._linear(key)
            a, b = (part.detach().clone() for part in linear.factors(name))
            parts[key] = LowRank(a, b, linear.scales[name])
        return Adapter(parts, name)

    def detach(self, name: str) -> None:
        """Removes an adapter; projections without any are plain linear layers again."""
        self._check_there(name)
        if self.active == name:
            self.activate(None)
        for key in self._keys.pop(name):
            linear = self._linear(key)
            del linear.lora_a[_entry(name)], linear.lora_b[_entry(name)], linear.scales[name]
            if not linear.scales:
                parent, attribute = self._wrapped.pop(key)
                setattr(parent, attribute, linear.base)

    def _linear(self, key: Key) -> LoraLinear:
        """The projection's wrapper, made at its first use."""
        if key not in self._wrapped:
            layer, name = key
            parent, attribute = _find(self.decoder.layers[layer], name)
            base = getattr(parent, attribute)
            if isinstance(base, LoraLinear):
                raise BadAdapter(
                    f"layer {layer} {name} belongs to other branches already.\n"
                    "Use one Branches for a decoder."
                )
            wrapper = LoraLinear(base)
            wrapper.active = self.active
            setattr(parent, attribute, wrapper)
            self._wrapped[key] = (parent, attribute)
        parent, attribute = self._wrapped[key]
        return getattr(parent, attribute)

    def _check_there(self, name: str) -> None:
        if name not in self._keys:
            there = ", ".join(self._keys) or "none"
            raise BadAdapter(f"there is no adapter {name!r} (there are: {there}).\nLoad it first.")


def _entry(name: str) -> str:
    """Key in a ParameterDict, which takes no name that its own methods have."""
    return f"adapter-{name}"


def check_name(name: str) -> None:
    """Names are also keys of modules and parts of file names."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise BadAdapter(
            f"{name!r} cannot name an adapter.\nUse letters, digits, hyphens and underscores."
        )


def _find(layer: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds a projection, and its attribute there."""
    for path, _ in layer.named_modules():
        parent, _, attribute = path.rpartition(".")
        if attribute == name:
            return layer.get_submodule(parent), attribute
    raise KeyError(name)
