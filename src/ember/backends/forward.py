"""A prompt's forward: the decoder's, replayed as a CUDA graph where a shape comes back.

Contract. `Forward(decoder)(tokens, cache)` appends the tokens' KV to the cache and gives the logits
of the last one. It is the decoder itself, or where packed weights are given its operations with
kernels in between (`backends.cuda.prefill`). On CUDA launching a model's kernels one by one
takes the host about as long as a thousand tokens take the device, so the second prefill of the same
rows, length and start is recorded and later ones are replayed. Rollouts bring the same prompts
every round; lengths that never come back are never recorded.
"""

import logging
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.backends.packing import PackedDecoder
from ember.cache.contiguous import ContiguousCache
from ember.model.decoder import Decoder

log = logging.getLogger(__name__)

KEPT_GRAPHS = 16  # shapes remembered; their recordings share one pool of memory


@dataclass
class _Recording:
    graph: torch.cuda.CUDAGraph
    tokens: Tensor  # (B, T), what a replay reads
    logits: Tensor  # (B, V), what it writes


class Forward:
    """Runs prompts into one block of cache memory. In-place changes of weights show."""

    def __init__(
        self, decoder: Decoder, *, graphs: bool = False, weights: PackedDecoder | None = None
    ):
        """`weights`: of the decoder, for the kernels, where they cover it."""
        self.decoder, self._graphs, self.weights = decoder, graphs, weights
        self._shapes: OrderedDict[tuple, _Recording | None] = OrderedDict()
        self._pool = None

    def __call__(self, tokens: Tensor, cache: ContiguousCache) -> Tensor:
        """Runs tokens (B, T), from the host, after what `cache` holds; returns logits (B, V).

        The host waits for nothing: the next prefill is launched while this one runs.
        """
        tokens = sent(tokens, cache.kv.device)
        if not self._graphs or not cache.kv.is_cuda:
            return self._run(tokens, cache)
        shape = (cache.kv.storage_offset(), *tokens.shape, cache.length(0))
        new = shape not in self._shapes
        recording = self._shapes.pop(shape, None)
        if new:  # the first run is also what lets libraries prepare their kernels
            logits = self._run(tokens, cache)
        else:
            if recording is None:
                recording = self._record(tokens, cache)
            else:
                cache.advance(tokens.shape[1])
            recording.tokens.copy_(tokens)
            recording.graph.replay()
            logits = recording.logits.clone()
        self._shapes[shape] = recording  # the most recently used is last
        while len(self._shapes) > KEPT_GRAPHS:
            self._shapes.popitem(last=False)
        return logits

    def _run(self, tokens: Tensor, cache: ContiguousCache) -> Tensor:
        if self.weights is not None:
            from ember.backends.cuda.prefill import run_packed  # imports Triton

            return run_packed(self.decoder.arch, self.weights, tokens, cache)
        return self.decoder.logits(self.decoder(tokens, cache=cache, last=1))[:, 0]

    def _record(self, tokens: Tensor, cache: ContiguousCache) -> _Recording:
        """Records the run without carrying it out; the cache counts the tokens all the same."""
        log.debug(
            "recording the prefill of %s tokens after %d", tuple(tokens.shape), cache.length(0)
        )
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = self._run(tokens, cache)
        self._pool = graph.pool()
        return _Recording(graph, tokens, logits)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device, without waiting for what the device still has to do: a copy
    from memory that is not pinned would."""
    if device.type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
