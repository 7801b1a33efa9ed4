"""How a prompt's KV comes about: computed, or its longest stored prefix copied and the rest run.

Contract. A strategy fills an empty cache with one prompt and gives the logits of its last token;
or it fills it with all but that token and gives none, where nothing else is left to run: whoever
decodes then runs it first. It knows the version of the weights, and what it keeps from one call to
the next belongs to that version alone. `ember.policies.prefill` has one more.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor

from ember.backends.forward import Forward, hand_over
from ember.cache.contiguous import ContiguousCache
from ember.cache.radix import RadixCache
from ember.model.decoder import Decoder
from ember.model.version import version as content_of

Phase = Callable[[str], AbstractContextManager]
"""Times a block under a name."""


def untimed(name: str) -> AbstractContextManager:
    """Stands in for a clock's `phase` where there is none."""
    return nullcontext()


class PlainPrefill:
    """Runs every prompt as a whole, and keeps nothing."""

    version: str | None = None  # until an engine says

    def use_version(self, version: str) -> None:
        """The weights are of this version from now on."""
        self.version = version

    def forget(self) -> None:
        """Drops what was made by the present version, which turned out to be broken."""

    def fill(
        self, prompt: Sequence[int], cache: ContiguousCache, forward: Forward, phase: Phase
    ) -> tuple[Tensor | None, int]:
        """Logits (1, V) of the prompt's last token, and how many tokens were not computed.

        `cache` is empty and has one row. Logits None: it then holds the prompt without its last
        token, which is still to be run.
        """
        with phase("prefill"):
            memory = forward.place(cache)
            logits = forward(torch.from_numpy(np.asarray([prompt], dtype=np.int64)), memory)
            hand_over(memory, cache)
        return logits, 0


class PrefixPrefill(PlainPrefill):
    """Copies the longest prefix that a `RadixCache` holds, runs the rest and stores it.

    What is stored belongs to the weights' content and the engine's label of it, so that engines may
    share a cache, and weights that are swapped without a word reuse nothing of others.
    """

    def __init__(self, cache: RadixCache):
        self.cache = cache
        self._namespace: str | None = None

    def use_version(self, version: str) -> None:
        if version != self.version:
            self.forget()
        super().use_version(version)

    def forget(self) -> None:
        if self._namespace is not None:
            self.cache.invalidate(self._namespace)
            self._namespace = None

    def _current(self, decoder: Decoder) -> str:
        """The namespace of the weights as they are now; another one's content is dropped."""
        namespace = f"{self.version} {content_of(decoder)}"
        if namespace != self._namespace:
            self.forget()
            self._namespace = namespace
        return namespace

    def fill(
        self, prompt: Sequence[int], cache: ContiguousCache, forward: Forward, phase: Phase
    ) -> tuple[Tensor | None, int]:
        with phase("lookup"):
            ids = np.asarray(prompt, dtype=np.int64)
            namespace = self._current(forward.decoder)
            with self.cache.match(namespace, ids[:-1]) as match:  # the last gives the logits
                if 0 < match.length == len(ids) - 1:
                    return None, match.copy_into(cache)
                memory = forward.place(cache)
                cached = match.copy_into(memory)
        with phase("prefill"):
            logits = forward(torch.from_numpy(ids[None, cached:]), memory)
            hand_over(memory, cache)
        with phase("store"):
            self.cache.insert(namespace, ids, lambda start, stop: memory.segment(0, start, stop))
        return logits, cached
