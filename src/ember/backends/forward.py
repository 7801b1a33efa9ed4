"""A prompt's forward: the decoder's, replayed as a CUDA graph where a shape comes back.

Contract. `Forward(decoder)(tokens, cache)` appends the tokens' KV to the cache and gives the logits
of the last one; `run` does so for a part of the layers, from and to hidden states. It is the
decoder itself, or where packed weights are given its operations with kernels in between
(`backends.cuda.prefill`). On CUDA launching a model's kernels one by one takes the host about as
long as a thousand tokens take the device, so the second run of the same rows, length, start and
layers is recorded and later ones are replayed. Rollouts bring the same prompts every round; lengths
that never come back are never recorded.
"""

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ember.backends.packing import PackedDecoder
from ember.cache.contiguous import ContiguousCache
from ember.cache.copying import copy_kv
from ember.model.decoder import Decoder, Tap

log = logging.getLogger(__name__)

KEPT_GRAPHS = 64  # shapes remembered; their recordings share one pool of memory
TOLD = ("attn_in", "k_raw")  # what taps are told of a run


class Passage(NamedTuple):
    """What a run leaves beside KV: logits (B, V) of the last token, its state after the last layer
    (B, 1, H), and by layer the states of all tokens that enter it, (B, T, H)."""

    logits: Tensor
    top: Tensor
    hidden: dict[int, Tensor]

    def clone(self) -> "Passage":
        """A copy that the next run does not overwrite."""
        hidden = {layer: x.clone() for layer, x in self.hidden.items()}
        return Passage(self.logits.clone(), self.top.clone(), hidden)


class Layers(NamedTuple):
    """Which layers run: all tokens in start … stop, above it the last one alone. `keep`: layers of
    which the entering states are wanted, from above `start` up to `stop`."""

    start: int
    stop: int
    keep: tuple[int, ...] = ()


@dataclass
class _Recording:
    graph: torch.cuda.CUDAGraph
    given: Tensor  # what a replay reads
    passage: Passage  # what it writes
    told: list[tuple[int, str, Tensor]]  # what a tap is told of it


class Forward:
    """Runs prompts into one block of cache memory. In-place changes of weights show."""

    def __init__(
        self,
        decoder: Decoder,
        *,
        graphs: bool = False,
        weights: PackedDecoder | None = None,
        memory: ContiguousCache | None = None,
    ):
        """`weights`: of the decoder, for the kernels, where they cover it. `memory`: where prompts
        are to be run, always the same, so that recordings serve again; one row."""
        self.decoder, self._graphs, self.weights = decoder, graphs, weights
        self.memory = memory
        self._shapes: OrderedDict[tuple, _Recording | None] = OrderedDict()
        self._pool = None

    def place(self, cache: ContiguousCache) -> ContiguousCache:
        """Where to run a prompt whose KV is to lie in `cache`, which is empty: empty memory."""
        if self.memory is None:
            return cache
        self.memory.reset()
        return self.memory

    def __call__(self, tokens: Tensor, cache: ContiguousCache) -> Tensor:
        """Runs tokens (B, T), from the host, after what `cache` holds; returns logits (B, V)."""
        return self.run(tokens, cache).logits

    def run(
        self,
        given: Tensor,
        cache: ContiguousCache,
        *,
        start: int = 0,
        stop: int | None = None,
        keep: Sequence[int] = (),
        tap: Tap | None = None,
    ) -> Passage:
        """Runs token ids (B, T) through all layers, or hidden states (B, T, H) from layer `start`.

        The tokens follow those that `cache` holds in a layer. From layer `stop` on (default: none)
        the last token runs alone. The states that enter the layers in `keep`, between the two, are
        handed back. `tap` is told of what `TOLD` names (see `ember.model.decoder.Tap`), of a
        replayed run after it, and must take what it needs before the next run. The host waits for
        nothing: the next prefill is launched while this one runs.
        """
        depth = self.decoder.arch.num_layers
        stop = depth if stop is None else stop
        inside = sorted(layer for layer in keep if start < layer <= stop and layer < depth)
        layers = Layers(start, stop, tuple(inside))
        given = sent(given[:, -1:] if start == stop < depth else given, cache.kv.device)
        if not self._graphs or not cache.kv.is_cuda:
            return self._run(given, cache, layers, tap)
        where, tells = (cache.kv.data_ptr(), cache.kv.stride()), tap is not None
        lengths = map(cache.length, cache.layers)
        shape = (where, given.shape, given.dtype, layers, tells, *lengths)
        new = shape not in self._shapes
        recording = self._shapes.pop(shape, None)
        if new:  # the first run is also what lets libraries prepare their kernels
            passage = self._run(given, cache, layers, tap)
        else:
            if recording is None:
                recording = self._record(given, cache, layers, tells)
            else:
                count(cache, given.shape[1], layers)
            recording.given.copy_(given)
            recording.graph.replay()
            passage = recording.passage.clone()
            for told in recording.told:
                tap(*told)
        self._shapes[shape] = recording  # the most recently used is last
        while len(self._shapes) > KEPT_GRAPHS:
            self._shapes.popitem(last=False)
        return passage

    def _run(
        self, given: Tensor, cache: ContiguousCache, layers: Layers, tap: Tap | None = None
    ) -> Passage:
        if self.weights is not None:
            from ember.backends.cuda.prefill import run_packed  # imports Triton

            return run_packed(self.decoder.arch, self.weights, given, cache, layers, tap)
        return run_eager(self.decoder, given, cache, layers, tap)

    def _record(
        self, given: Tensor, cache: ContiguousCache, layers: Layers, tells: bool
    ) -> _Recording:
        """Records the run without carrying it out; the cache counts the tokens all the same."""
        told: list[tuple[int, str, Tensor]] = []

        def keep(layer: int, name: str, x: Tensor) -> None:
            if name in TOLD:
                told.append((layer, name, x.clone()))  # it may be a small part of what it lies in

        log.debug("recording the prefill of %s by %s", tuple(given.shape), layers)
        graph, given = torch.cuda.CUDAGraph(), given.clone()  # it is written to at each replay
        with torch.cuda.graph(graph, pool=self._pool):
            passage = self._run(given, cache, layers, keep if tells else None)
        self._pool = graph.pool()
        return _Recording(graph, given, passage, told)


def run_eager(
    decoder: Decoder,
    given: Tensor,
    cache: ContiguousCache,
    layers: Layers,
    tap: Tap | None = None,
) -> Passage:
    """A run (see `Forward.run`) by the decoder itself."""
    depth, (start, stop, keep) = decoder.arch.num_layers, layers
    x, hidden = decoder.embed(given) if start == 0 else given, {}
    cuts = sorted({start, stop, *keep})
    for first, end in pairwise(cuts):
        last = 1 if end == depth else None  # of the rest only the last token is wanted
        x = decoder(hidden=x, cache=cache, layers=range(first, end), tap=tap, last=last)
        if end in keep:
            hidden[end] = x
    x = x[:, -1:]
    if stop < depth:
        x = decoder(hidden=x, cache=cache, layers=range(stop, depth), tap=tap)
    return Passage(decoder.logits(x)[:, 0], x, hidden)


def count(cache: ContiguousCache, tokens: int, layers: Layers) -> None:
    """Counts what a run has written, or is about to write, into the cache's memory."""
    cache.advance(tokens, range(layers.start, layers.stop))
    cache.advance(1, range(layers.stop, len(cache.layers)))


def hand_over(memory: ContiguousCache, cache: ContiguousCache) -> None:
    """Copies the KV of a prompt from where it ran to where it is to lie."""
    if memory is not cache:
        tokens = memory.length(0)
        copy_kv(cache.kv[..., :tokens, :], memory.kv[..., :tokens, :])
        cache.advance(tokens)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device, without waiting for what the device still has to do: a copy
    from memory that is not pinned would."""
    if device.type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
