"""The cache protocol: what every kind of KV cache answers to the decoder.

Contract. In each layer the decoder hands over keys as projected (neither normed nor rotated),
values, and what both were projected from; the cache keeps what it likes and answers with the keys
and values that attention reads. So whether keys are kept rotated, which tokens are kept, where they
stand and what else is remembered are the cache's matters, and the decoder's none.

Shapes: B batch, T tokens of a call, S tokens read, H hidden size, Hq and Hkv query and KV heads, D
head dimension.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from ember.model.decoder import KeyRotation
from ember.records.errors import EmberError


class CacheFull(EmberError):
    """More tokens than the cache was made for."""


class BadCacheUse(EmberError):
    """A layer, row, token or position that the cache does not hold, or gradients it cannot keep."""


class KVRead(NamedTuple):
    """What attention reads in one layer: keys as scored and values, both (B, Hkv, S, D).

    The call's own tokens are the last T of S, and each query sees the keys up to its own (in
    sliding layers the last `sliding_window` of them). `bias`, broadcastable to (B, Hq, T, S), is
    added to the scores; with None the fast attention kernels serve.
    """

    k: Tensor
    v: Tensor
    bias: Tensor | None = None


class KVCache(ABC):
    """Base of all caches that a forward of the decoder may be given."""

    wants_mass = False
    """Whether `observe` is to be told of attention mass; it costs the fast attention kernels."""

    @abstractmethod
    def length(self, layer: int) -> int:
        """Tokens stored in a layer."""

    @abstractmethod
    def positions(self, count: int, layer: int) -> Tensor:
        """Positions (count,) or (B, count) of the next tokens of `layer`, the first that is run."""

    @abstractmethod
    def update(
        self, layer: int, k: Tensor, v: Tensor, rotation: KeyRotation, source: Tensor
    ) -> KVRead:
        """Stores a call's tokens in a layer and returns what attention reads there.

        k and v (B, T, Hkv, D) as projected, `source` (B, T, H) what they were projected from.
        `rotation(k)` norms and rotates keys for the call's positions, (B, Hkv, T, D).
        """

    def observe(self, layer: int, mass: Tensor) -> None:
        """Attention mass (B, Hq, S) of each key read, summed over the call's queries.

        Told after each layer where `wants_mass`.
        """
        raise NotImplementedError(f"{type(self).__name__} asks for attention mass and ignores it")


def refuse_gradients(k: Tensor) -> None:
    """Raises BadCacheUse for keys through which a gradient is to flow."""
    if k.requires_grad and torch.is_grad_enabled():
        raise BadCacheUse(
            "a KV cache keeps no gradients.\n"
            "Run under torch.inference_mode(), or train without a cache."
        )
