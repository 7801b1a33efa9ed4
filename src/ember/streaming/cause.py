"""What a prune takes from attention, and which part of it the loss comes from (2606.01563).

A query after a prune sees the kept tokens: attention gives their mean value o_k. Had nothing been
dropped, it would give o = (1 - m) o_k + m o_d, with the mass m and the mean value o_d that the
dropped tokens would have. Both are computed here for the same queries. A repair makes of these what
attention then gives: o_k shrunk as by the mass alone, o_k with the norm of o, o with the norm of
o_k, and so on. The losses under each repair say which part matters.

Shapes: L layers, B streams, Hq and Hkv heads, n kept and R dropped tokens, T queries, D head
dimension.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ember.cache.base import KVCache, KVRead
from ember.model.decoder import Decoder, rotary_tables, rotate
from ember.streaming.cache import StreamingCache
from ember.streaming.methods.fold import folded


@dataclass
class Parts:
    """Attention of some queries over the kept tokens, and what the dropped ones would add to it."""

    kept: Tensor  # o_k (B, Hq, T, D)
    on_kept: Tensor  # (B, Hq, T, 1): log of the kept tokens' sum in the softmax
    scores: Tensor  # (B, Hq, T, R)
    values: Tensor  # (B, Hq, R, D)
    slot: tuple[Tensor, Tensor]  # scores (B, Hq, T, 1), value (B, Hq, 1, D) of what they fold into

    @property
    def mass(self) -> Tensor:
        """m (B, Hq, T, 1)."""
        return torch.sigmoid(self.scores.logsumexp(-1, keepdim=True) - self.on_kept)

    @property
    def whole(self) -> Tensor:
        """o: as if nothing had been dropped."""
        return self.joined(self.scores, self.values)

    def joined(self, scores: Tensor, values: Tensor) -> Tensor:
        """The output where the kept tokens and these others are attended to."""
        mass = torch.sigmoid(scores.logsumexp(-1, keepdim=True) - self.on_kept)
        return self.kept + mass * (scores.softmax(-1) @ values - self.kept)

    def newest(self) -> Tensor:
        """The output with an eighth of the dropped tokens, those that are nearest."""
        count = max(1, self.scores.shape[-1] // 8)
        return self.joined(self.scores[..., -count:], self.values[..., -count:, :])

    def attended(self) -> Tensor:
        """The same with those that the queries of the period would attend to most."""
        count = max(1, self.scores.shape[-1] // 8)
        chosen = self.scores.softmax(-1).mean(2).topk(count, -1).indices  # (B, Hq, count)
        at = chosen[:, :, None].expand(-1, -1, self.scores.shape[2], -1)
        of_values = chosen[..., None].expand(-1, -1, -1, self.values.shape[-1])
        return self.joined(self.scores.gather(-1, at), self.values.gather(2, of_values))


def _norm(x: Tensor) -> Tensor:
    return x.norm(dim=-1, keepdim=True).clamp_min(1e-12)


REPAIRS: Mapping[str, Callable[[Parts], Tensor]] = {
    "none": lambda p: p.kept,
    "mass": lambda p: (1 - p.mass) * p.kept,
    "norm": lambda p: p.kept * _norm(p.whole) / _norm(p.kept),
    "direction": lambda p: p.whole * _norm(p.kept) / _norm(p.whole),
    "mean_value": lambda p: p.kept + p.mass * (p.values.mean(2, keepdim=True) - p.kept),
    "fold": lambda p: p.joined(*p.slot),
    "fold_value": lambda p: p.kept + p.mass * (p.slot[1] - p.kept),
    "newest": Parts.newest,
    "attended": Parts.attended,
    "all": lambda p: p.whole,
}


@dataclass
class Prune:
    """One prune: `step` tokens were fed before it. nll (B, R) of the tokens after it, by repair;
    of each layer and stream (L, B), means over heads and queries: the mass of the dropped tokens,
    |o_k| / |o|, the cosine of o_k and o, and the part of |o_k - o|² that is across o."""

    step: int
    nll: dict[str, Tensor]
    mass: Tensor
    norm_ratio: Tensor
    cosine: Tensor
    across: Tensor


@torch.inference_mode()
def prunes(
    decoder: Decoder,
    tokens: Tensor,
    *,
    peak: int,
    n_sink: int,
    interval: int,
) -> Iterator[Prune]:
    """Every prune of lazily pruned streams (B, T) whose whole period is in them.

    Each period is read once for every repair, from the same cache as lazy pruning leaves it.
    """
    weight = decoder.embed_tokens.weight
    cache = StreamingCache(decoder.arch, len(tokens), peak, weight.device, weight.dtype)
    step = 0
    while True:
        stop = step + peak - cache.slots
        _read(decoder, tokens[:, step : stop - 1], cache)
        cache.wants_mass = True  # folding reads the last query's mass before a prune
        _read(decoder, tokens[:, stop - 1 : stop], cache)
        cache.wants_mass, step = False, stop
        if step + interval >= tokens.shape[1]:
            return
        gone = _Gone(decoder, cache, n_sink, interval)
        cache.drop(torch.arange(n_sink, n_sink + interval, device=tokens.device))
        gone.turn(cache)
        known = tokens[:, step + 1 : step + interval + 1]
        found, measured = {}, []
        for name, repair in REPAIRS.items():
            branch = _Branch(cache)
            with _attending(decoder, partial(gone.attend, repair, measured)):
                logits = decoder.logits(
                    decoder(tokens[:, step : step + interval], cache=branch)
                ).log_softmax(-1, dtype=torch.float32)
            found[name] = -logits.gather(-1, known[..., None])[..., 0]
        # Of the first repair's queries, layer by layer.
        yield Prune(step, found, *(torch.stack(one) for one in zip(*measured, strict=True)))


def _read(decoder: Decoder, tokens: Tensor, cache: KVCache) -> None:
    if tokens.shape[1]:
        decoder(tokens, cache=cache, last=1)


class _Gone:
    """The tokens that a prune drops, and the slot that they fold into."""

    def __init__(self, decoder: Decoder, cache: StreamingCache, first: int, count: int):
        arch, part = decoder.arch, slice(first, first + count)
        self.arch, self.groups = arch, arch.num_heads // arch.num_kv_heads
        self.raw = cache.raw[..., part, :].clone()  # (L, B, Hkv, R, D)
        self.v = cache.v[..., part, :].clone()
        self.recent = cache.recent[..., part].clone()
        self.before = cache.slots - first  # from the first of them to the next token

    def turn(self, cache: StreamingCache) -> None:
        """Rotates keys as after the prune: their distances to later tokens stay."""
        start = cache.positions(1, 0) - self.before
        at = start + torch.arange(self.raw.shape[-2], device=start.device)
        flat = self.raw.flatten(0, 1).transpose(1, 2)
        k = rotate(flat, *rotary_tables(self.arch, at, flat.dtype)).transpose(1, 2)
        self.k = k.view(self.raw.shape)
        self.slot = folded(self.k, self.v, self.recent)

    def attend(
        self, repair: Callable, measured: list, layer: int, q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        """As `decoder.attend`, repaired."""
        spread = partial(torch.repeat_interleave, repeats=self.groups, dim=1)
        wide, scale = q.float(), q.shape[-1] ** -0.5
        past = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
        scores = (wide @ spread(k).float().mT) * scale
        scores = scores.masked_fill(past.triu(k.shape[2] - q.shape[2] + 1), -torch.inf)
        slot_k, slot_v, slot_bias = (one[layer] for one in self.slot)
        folded_in = (wide @ spread(slot_k)[..., None].float()) * scale
        parts = Parts(
            scores.softmax(-1) @ spread(v).float(),
            scores.logsumexp(-1, keepdim=True),
            (wide @ spread(self.k[layer]).float().mT) * scale,
            spread(self.v[layer]).float(),
            (folded_in + slot_bias[..., None, None].float(), spread(slot_v)[:, :, None].float()),
        )
        if len(measured) < self.arch.num_layers:
            measured.append(_geometry(parts))
        return repair(parts).to(q.dtype)


def _geometry(parts: Parts) -> tuple[Tensor, ...]:
    """Of `Prune`, each (B,)."""
    kept, whole = parts.kept, parts.whole
    cosine = (kept * whole).sum(-1) / (_norm(kept) * _norm(whole))[..., 0]
    error = kept - whole
    along = (error * whole / _norm(whole)).sum(-1) ** 2
    square = (error**2).sum(-1)
    return (
        parts.mass.mean((1, 2, 3)),
        (_norm(kept) / _norm(whole)).mean((1, 2, 3)),
        cosine.mean((1, 2)),
        1 - along.sum((1, 2)) / square.sum((1, 2)).clamp_min(1e-12),
    )


class _Branch(KVCache):
    """What a cache holds, and the tokens of one call after it; the cache stays as it is."""

    def __init__(self, cache: StreamingCache):
        self.cache = cache

    def length(self, layer: int) -> int:
        return self.cache.slots

    def positions(self, count: int, layer: int) -> Tensor:
        return self.cache.positions(count, layer)

    def update(self, layer, k, v, rotation, source) -> KVRead:
        held = slice(0, self.cache.slots)
        old_k, old_v = (one[layer, :, :, held] for one in (self.cache.k, self.cache.v))
        return KVRead(torch.cat([old_k, rotation(k)], 2), torch.cat([old_v, v.transpose(1, 2)], 2))


@contextmanager
def _attending(decoder: Decoder, attend: Callable) -> Iterator[None]:
    """Inside, layers attend by attend(layer, q, k, v)."""
    for index, layer in enumerate(decoder.layers):
        layer.self_attn.attend = partial(attend, index)
    try:
        yield
    finally:
        for layer in decoder.layers:
            del layer.self_attn.attend
