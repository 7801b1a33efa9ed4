"""Streams through a decoder with a bounded cache: what every token costs in nats, and in time.

Contract. `run` feeds streams (B, T) that take the same decisions at the same steps, in pieces as
long as no decision falls into them; the numbers are those of one token at a time. Nothing is left
of one run in the next.
"""

import time
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ember.measure.device import synchronize
from ember.model.decoder import Decoder
from ember.streaming.cache import StreamingCache
from ember.streaming.method import BadMethod, Method, Moment

SPARE = 0.5  # of the peak: a wrap moves all that is held once in so many tokens
PIECE = 256  # tokens of a call at most, whose logits are held


@dataclass
class Run:
    """What happened: nll (B, T - 1) of each token after the first, in nats; visible (T,) tokens
    that each query saw; `drops` (steps done, tokens dropped) in order; bytes moved by them."""

    nll: np.ndarray
    visible: np.ndarray
    drops: list[tuple[int, int]] = field(default_factory=list)
    copied_bytes: int = 0
    path: str = "eager"  # what ran the layers
    calls: int = 0
    token_ms: np.ndarray | None = None  # (T,), of a timed run; 0 for what was prefilled
    prefilled: int = 0  # tokens that a timed run fed at once, and their time
    prefill_ms: float = 0.0


@torch.inference_mode()
def run(
    decoder: Decoder,
    tokens: Tensor,
    method: Method,
    *,
    structural: Tensor | None = None,
    piece: int = PIECE,
    timed: bool = False,
    prefill: int = 0,
    spare: float = SPARE,
) -> Run:
    """Feeds `tokens` (B, T) under a method. `timed`: one token at a time, each by the clock,
    after `prefill` tokens in whole pieces, which are timed together. `spare`: the soft ring's
    memory beyond the peak, as a fraction of it; 0: every drop moves what comes after it.

    `structural` (V,) says which tokens end a line or a sentence, for the selector that asks.
    """
    rows, total = tokens.shape
    if method.one_row and rows > 1:
        raise BadMethod(f"{method.name}: each stream goes its own way; run one at a time")
    if "structure" in method.needs and structural is None:
        raise BadMethod(f"{method.name}: needs to know which tokens end a line; hand them in")
    weight = decoder.embed_tokens.weight
    capacity = min(method.peak, total) if method.prunes else total
    cache = StreamingCache(
        decoder.arch,
        rows,
        capacity,
        weight.device,
        weight.dtype,
        method.absolute,
        int(spare * capacity) if method.prunes else 0,
    )
    moment = Moment(decoder, cache, tokens, structural=structural)
    if "entropy" in method.needs:
        moment.entropy = torch.zeros(tokens.shape, device=tokens.device)
    nll = torch.zeros((rows, total), device=tokens.device, dtype=torch.float64)
    found = Run(np.zeros(0), np.zeros(total, np.int64))
    clock = np.zeros(total) if timed else None
    device = str(weight.device)
    while moment.step < total:
        began = time.perf_counter()
        left, single = method.room(moment), timed and moment.step >= prefill
        count = min(1 if single else left, total - moment.step, piece)
        if not single and moment.step < prefill:
            count = min(count, prefill - moment.step)
        # Only the last queries before a decision are observed: it costs the fast kernels.
        unseen = min(max(0, left - method.observes), count)
        _feed(moment, unseen, "mass" in method.needs, nll, found)
        _feed(moment, count - unseen, True, nll, found)
        prune(method, moment, found)
        if timed:
            synchronize(device)
            took = (time.perf_counter() - began) * 1e3
            if single:
                clock[moment.step - 1] = took
            else:
                found.prefilled, found.prefill_ms = moment.step, found.prefill_ms + took
    found.nll, found.copied_bytes = nll[:, :-1].cpu().numpy(), cache.copied_bytes
    found.calls, found.token_ms = found.calls + moment.calls, clock
    return found


def _feed(moment: Moment, count: int, observed: bool, nll: Tensor, found: Run) -> None:
    if not count:
        return
    cache, start = moment.cache, moment.step
    stop = start + count
    cache.wants_mass = observed
    before = cache.slots
    logits = moment.decoder.logits(moment.decoder(moment.tokens[:, start:stop], cache=cache))
    logits = logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    known = moment.tokens[:, start + 1 : stop + 1]
    scored = logits[:, : known.shape[1]].gather(-1, known[..., None])[..., 0]
    nll[:, start : start + known.shape[1]] = -scored
    if moment.entropy is not None:
        moment.entropy[:, start:stop] = -(logits.exp() * logits).sum(-1)
    found.visible[start:stop] = np.arange(before + 1, before + count + 1)
    found.calls += 1
    moment.step = stop


def prune(method: Method, moment: Moment, found: Run) -> None:
    """Asks the method what goes now, carries it out and notes it."""
    places = method.drop(moment)
    if places is None or moment.step == moment.tokens.shape[1]:
        return
    before = moment.length
    method.apply(moment, places)
    found.drops.append((moment.step, before - moment.length))
    moment.pruning = moment.length > method.target_size
    if not moment.pruning:
        moment.pruned_at = moment.step
