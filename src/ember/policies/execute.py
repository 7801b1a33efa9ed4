"""Carries out plans on the real decoder: partial prefills, restarts, corrections (P1-5, P1-8).

A `PromptKV` holds what a prompt's prefill leaves behind: keys and values, the hidden states
entering the boundary layers and, where stale KV is to be corrected (P1-8), low-rank activations
x·Aᵀ (r numbers a token and adapted projection) and, if the architecture norms its keys, the raw
ones. `run_plan` brings it up to date as a `Plan` says, `PolicyRunner` asks a policy for the plan.
KV is stored under the content hash of the weights that made it; it crosses an update only through
a policy's plan, never by accident.

The correction assumes that A stands still: then B alone moves K by s·(xAᵀ)ΔBᵀ. If A trains too,
the stored activations belong to the old A; the correction then needs x itself (H numbers a token
instead of r) and has rank 2r, so `correct` refuses and asks for a full refresh.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from ember.cache.contiguous import ContiguousCache
from ember.model.decoder import Decoder, rotary_tables, rotate
from ember.policies.plan import BadPolicy, Plan, Request, Update
from ember.policies.policy import CachePolicy
from ember.records.errors import EmberError


class StaleFactors(EmberError):
    """Stored low-rank activations do not fit the adapter they are to be corrected by."""


@dataclass(frozen=True)
class LowRank:
    """W = W0 + scale · b·a of one projection: a (r, in), b (out, r). Not to be changed in place."""

    a: Tensor
    b: Tensor
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]


Adapter = Mapping[tuple[int, str], LowRank]
"""Adapted projections by (layer, "k_proj" or "v_proj"); others do not touch KV directly."""


@dataclass
class PromptKV:
    """The KV of one prompt and what its reuse needs. T tokens, Hkv KV heads of D, hidden size H."""

    tokens: Tensor  # (1, T)
    cache: ContiguousCache  # batch 1, keys rotated
    hidden: dict[int, Tensor] = field(default_factory=dict)  # layer -> entering it, (1, T, H)
    top: Tensor | None = None  # last token after the last layer, (1, 1, H)
    factors: dict[tuple[int, str], Tensor] = field(default_factory=dict)  # x·Aᵀ, (T, r)
    raw_keys: dict[int, Tensor] = field(default_factory=dict)  # layer -> (T, Hkv, D)
    adapter: Adapter | None = None  # what K, V and factors stand at; None: mixed or not kept

    @classmethod
    def empty(cls, decoder: Decoder, tokens: Sequence[int]) -> "PromptKV":
        """Room for a prompt's KV, in the decoder's format and on its device."""
        weight = decoder.embed_tokens.weight
        ids = torch.tensor([list(tokens)], device=weight.device)
        return cls(ids, ContiguousCache(decoder.arch, 1, ids.shape[1], weight.device, weight.dtype))

    @property
    def length(self) -> int:
        """T."""
        return self.tokens.shape[1]

    @property
    def bytes(self) -> dict[str, int]:
        """Memory by what it is for: kv, hidden, factors, raw_keys."""
        parts = {
            "hidden": [*self.hidden.values(), *([] if self.top is None else [self.top])],
            "factors": self.factors.values(),
            "raw_keys": self.raw_keys.values(),
        }
        return {"kv": self.cache.bytes} | {
            name: sum(t.numel() * t.element_size() for t in tensors)
            for name, tensors in parts.items()
        }


@torch.inference_mode()
def run_plan(
    decoder: Decoder,
    kv: PromptKV,
    plan: Plan,
    *,
    boundaries: Sequence[int] = (),
    adapter: Adapter | None = None,
    donor: PromptKV | None = None,
) -> Tensor:
    """Bring `kv` up to date with the decoder's present weights as `plan` says; logits (1, V).

    boundaries: layers whose entering hidden states are kept for restarts. adapter: present low-rank
    part of the weights; keeps the factors that later corrections need. donor: a prompt with the
    same first plan.prefix_tokens tokens, computed with the present weights. Raises BadPolicy if the
    plan needs something that is not stored, StaleFactors if a correction is impossible.
    """
    layers, tokens = decoder.arch.num_layers, kv.length
    plan.check(layers, tokens)
    if plan.prefix_tokens:
        _copy_prefix(kv, donor, plan.prefix_tokens, boundaries)
    if plan.correct:
        correct(decoder, kv, adapter or {}, stop_token=plan.start_token)
    elif adapter is not None:
        fresh = plan.full_refresh or kv.adapter is adapter
        if plan.prefix_tokens and donor is not None:
            fresh = donor.adapter is adapter and plan.start_layer == 0
        kv.adapter = adapter if fresh else None
    tap = _keeper(kv, adapter, decoder.arch.qk_norm) if adapter is not None else None
    x = _entering(decoder, kv, plan.start_layer, plan.start_token)
    first = plan.start_token
    for start, stop in _spans(plan.start_layer, plan.stop_layer, boundaries):
        x = _run(decoder, kv, x, first, range(start, stop), tap)
        if stop in boundaries and stop < layers:
            _keep(kv.hidden, stop, x, first, tokens, axis=1)
    x = x[:, -1:]
    if plan.stop_layer < layers:
        x = _run(decoder, kv, x, tokens - 1, range(plan.stop_layer, layers), tap)
    kv.top = x
    return decoder.logits(x)[:, 0]


@torch.inference_mode()
def correct(
    decoder: Decoder,
    kv: PromptKV,
    adapter: Adapter,
    *,
    stop_token: int | None = None,
    first_layer: int = 0,
) -> int:
    """Correct K and V of the first `stop_token` tokens in place for the change of B (P1-8.1).

    K_raw += s·(xAᵀ)ΔBᵀ, then norm and rotate; V += s·(xAᵀ)ΔBᵀ. Exact in the first layer that
    changed, approximate above it, where x itself has moved. Returns the number of corrected
    projections. Raises StaleFactors if A moved or nothing was kept.
    """
    if kv.adapter is None:
        raise StaleFactors(
            "this prompt's KV cannot be corrected: it was made without keeping factors, or in "
            "parts by different weights; refresh it in full with the adapter given"
        )
    stop = kv.length if stop_token is None else stop_token
    weight = decoder.embed_tokens.weight
    positions = torch.arange(stop, device=weight.device)
    rotations = {
        local: rotary_tables(decoder.arch, positions, weight.dtype, local=local)
        for local in {decoder.arch.rope_is_local(n) for n in range(decoder.arch.num_layers)}
    }
    corrected = 0
    for layer in range(first_layer, decoder.arch.num_layers):
        attention = decoder.layers[layer].self_attn
        rotation = rotations[decoder.arch.rope_is_local(layer)]
        keys, values = kv.cache.read(layer, 0, stop)  # (1, Hkv, stop, D)
        for name, where in (("k_proj", keys), ("v_proj", values)):
            moved = _moved(kv.adapter.get((layer, name)), adapter.get((layer, name)))
            if moved is None:
                continue
            corrected += 1
            change = kv.factors[layer, name][:stop] @ moved.T  # (stop, Hkv·D)
            change = change.unflatten(-1, (-1, decoder.arch.head_dim))  # (stop, Hkv, D)
            if name == "v_proj":
                where += change.transpose(0, 1)
            elif attention.k_norm is None:  # rotation is linear: correct what is stored
                where += rotate(change[None], *rotation).transpose(1, 2)
            else:
                raw = kv.raw_keys[layer][:stop]
                raw += change
                where.copy_(rotate(attention.k_norm(raw[None]), *rotation).transpose(1, 2))
    kv.adapter = adapter
    return corrected


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and bytes: the version of weights or of an adapter."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def adapter_hash(adapter: Adapter) -> str:
    """Content hash of an adapter."""
    tensors = {}
    for (layer, name), part in adapter.items():
        tensors[f"{layer}.{name}.a"] = part.a
        tensors[f"{layer}.{name}.b"] = part.b
        tensors[f"{layer}.{name}.scale"] = torch.tensor([part.scale], dtype=torch.float64)
    return content_hash(tensors)


def prompt_key(tokens: Sequence[int]) -> str:
    """Content hash of token ids."""
    return hashlib.sha256(torch.tensor(list(tokens)).numpy().tobytes()).hexdigest()


@dataclass(frozen=True)
class KvKey:
    """Whose KV this is: content hash of the weights, content hash of the prompt."""

    weights: str
    prompt: str


class KvStore:
    """Prompts' KV under the weights that made it. `get` finds an exact key only; `take` is the one
    way across an update: it removes KV whatever made it, to be put back when brought up to date."""

    def __init__(self):
        self._entries: dict[KvKey, PromptKV] = {}
        self._latest: dict[str, KvKey] = {}

    def __len__(self):
        return len(self._entries)

    def get(self, key: KvKey) -> PromptKV | None:
        """KV made (or brought up to date) under exactly these weights."""
        return self._entries.get(key)

    def put(self, key: KvKey, kv: PromptKV) -> None:
        """Store KV; what the prompt had under other weights is dropped."""
        self.forget(key.prompt)
        self._entries[key] = kv
        self._latest[key.prompt] = key

    def take(self, prompt: str) -> PromptKV | None:
        """Remove and return the prompt's KV, whatever weights made it."""
        return self._entries.pop(self._latest.pop(prompt, None), None)

    def forget(self, prompt: str) -> None:
        """Drop a prompt's KV."""
        self.take(prompt)

    @property
    def bytes(self) -> dict[str, int]:
        """Memory of all prompts by what it is for."""
        out = {"kv": 0, "hidden": 0, "factors": 0, "raw_keys": 0}
        for kv in self._entries.values():
            for name, size in kv.bytes.items():
                out[name] += size
        return out


@dataclass(frozen=True)
class Prefill:
    """A prompt ready to decode: logits (1, V) of its last token, its KV, how and by what made."""

    logits: Tensor
    kv: PromptKV
    plan: Plan
    version: str


class PolicyRunner:
    """Drives the engine's weights and a policy together: tell it of updates, ask it to prefill.

    The weights are changed by the caller, in place; `on_update` says which and gives their version.
    """

    def __init__(
        self,
        decoder: Decoder,
        policy: CachePolicy,
        *,
        version: str = "base",
        adapter: Adapter | None = None,
    ):
        if policy.num_layers != decoder.arch.num_layers:
            raise BadPolicy(
                f"policy {policy.id} is built for {policy.num_layers} layers, the decoder has "
                f"{decoder.arch.num_layers}; build it for this model"
            )
        if policy.keeps_factors and adapter is None:
            raise BadPolicy(
                f"policy {policy.id} corrects KV by the adapter's change; give the adapter that "
                "the weights start from (b may be zero)"
            )
        self.decoder, self.policy, self.version = decoder, policy, version
        self.adapter = _snapshot(adapter or {}, {})
        self.store = KvStore()
        self._donors: dict[tuple[str, str], PromptKV] = {}

    def on_update(self, update: Update, adapter: Adapter | None = None) -> None:
        """The decoder's weights have changed; `adapter` is their low-rank part now."""
        if self.policy.keeps_factors and adapter is None:
            raise BadPolicy(f"policy {self.policy.id} needs the adapter of update {update.version}")
        self.policy.on_update(update)
        self.version = update.version
        if adapter is not None:
            self.adapter = _snapshot(adapter, self.adapter)
        self._donors.clear()

    def prefill(self, round: int, tokens: Sequence[int], shared_prefix: int = 0) -> Prefill:
        """Bring a prompt's KV up to date as the policy plans, and record that it was done."""
        request = Request(round, prompt_key(tokens), len(tokens), shared_prefix)
        key = KvKey(self.version, request.prompt)
        prefix = (self.version, prompt_key(tokens[:shared_prefix]))
        plan = self.policy.plan(request)
        kv = self.store.take(request.prompt)
        if kv is None:
            kv = PromptKV.empty(self.decoder, tokens)
        donor = self._donors.get(prefix) if plan.prefix_tokens else None
        logits = run_plan(
            self.decoder,
            kv,
            plan,
            boundaries=self.policy.boundaries,
            adapter=self.adapter if self.policy.keeps_factors else None,
            donor=donor,
        )
        self.store.put(key, kv)
        self.policy.record(request, plan)
        if shared_prefix and self.policy.history.prefix_donor(request) == request.prompt:
            self._donors[prefix] = kv
        return Prefill(logits, kv, plan, self.version)

    def forget(self, tokens: Sequence[int]) -> None:
        """Drop a prompt's KV, here and in the policy's view."""
        prompt = prompt_key(tokens)
        gone = self.store.get(KvKey(self.version, prompt))
        self._donors = {key: kv for key, kv in self._donors.items() if kv is not gone}
        self.store.forget(prompt)
        self.policy.forget(prompt)


def _entering(decoder: Decoder, kv: PromptKV, layer: int, first: int) -> Tensor:
    """Hidden states (1, T - first, H) that enter `layer`, from the embedding or the store."""
    if layer == 0:
        return decoder.embed(kv.tokens[:, first:])
    if layer == decoder.arch.num_layers and kv.top is not None:
        return kv.top
    if layer not in kv.hidden:
        kept = ", ".join(map(str, sorted(kv.hidden))) or "none"
        raise BadPolicy(
            f"no hidden states entering layer {layer} are stored (kept: {kept}); prefill in full "
            f"with boundaries=({layer},) first"
        )
    return kv.hidden[layer][:, first:]


def _run(decoder: Decoder, kv: PromptKV, x: Tensor, first: int, layers: range, tap) -> Tensor:
    """Run tokens first.. through `layers`; their KV replaces what was there."""
    if not len(layers):
        return x
    held = {kv.cache.length(layer) for layer in layers}
    if any(length < first for length in held):
        raise BadPolicy(
            f"tokens from {first} on are to run over {min(held)} stored ones; prefill in full first"
        )
    kv.cache.truncate(first, layers)
    return decoder(hidden=x, cache=kv.cache, layers=layers, tap=tap)


def _spans(start: int, stop: int, boundaries: Sequence[int]) -> list[tuple[int, int]]:
    """[start, stop) cut at the boundaries inside it; ends at stop."""
    cuts = [start, *(layer for layer in sorted(boundaries) if start < layer < stop), stop]
    return [(a, b) for a, b in pairwise(cuts) if a < b]


def _keep(store: dict, key, value: Tensor, first: int, tokens: int, axis: int) -> None:
    """Store `value` for tokens first..tokens along `axis`, over what is there."""
    if first == 0:
        store[key] = value
    elif key in store:
        store[key].narrow(axis, first, tokens - first).copy_(value)
    else:
        raise BadPolicy(f"{key}: earlier tokens were not kept; prefill in full first")


def _keeper(kv: PromptKV, adapter: Adapter, normed_keys: bool):
    """A tap that keeps x·Aᵀ of the adapted projections, and raw keys if they are normed."""

    def tap(layer: int, name: str, tensor: Tensor) -> None:
        first = kv.length - tensor.shape[1]
        if name == "attn_in":
            for projection in ("k_proj", "v_proj"):
                part = adapter.get((layer, projection))
                if part is not None:
                    key = (layer, projection)
                    _keep(kv.factors, key, tensor[0] @ part.a.T, first, kv.length, axis=0)
        elif name == "k_raw" and normed_keys and (layer, "k_proj") in adapter:
            _keep(kv.raw_keys, layer, tensor[0], first, kv.length, axis=0)

    return tap


def _moved(old: LowRank | None, new: LowRank | None) -> Tensor | None:
    """Change of scale·b, (out, r); None if there is none."""
    if new is old:
        return None
    if old is None or new is None or not (new.a is old.a or torch.equal(new.a, old.a)):
        raise StaleFactors(
            "the adapter's A has changed (or a projection was added or dropped), and the stored "
            "activations belong to the old one; train B only, or refresh in full when A moves"
        )
    if new.b is old.b and new.scale == old.scale:
        return None
    return new.scale * new.b - old.scale * old.b


def _copy_prefix(
    kv: PromptKV, donor: PromptKV | None, length: int, boundaries: Sequence[int]
) -> None:
    """Take the first `length` tokens' KV, hidden states and factors from another prompt."""
    if donor is None or not torch.equal(donor.tokens[:, :length], kv.tokens[:, :length]):
        raise BadPolicy(
            f"the plan reuses a shared prefix of {length} tokens that no prompt of this round has "
            "computed with the present weights; prefill in full"
        )
    if donor is kv:
        return
    for layer in kv.cache.layers:
        kv.cache.write(layer, 0, *donor.cache.read(layer, 0, length))
    mine, theirs = ([(one.hidden, 1), (one.factors, 0), (one.raw_keys, 0)] for one in (kv, donor))
    for (store, axis), (source, _) in zip(mine, theirs, strict=True):
        for key, value in source.items():
            if key not in store:
                shape = list(value.shape)
                shape[axis] = kv.length
                store[key] = value.new_empty(shape)
            store[key].narrow(axis, 0, length).copy_(value.narrow(axis, 0, length))


def _snapshot(adapter: Adapter, before: Adapter) -> Adapter:
    """A copy that a trainer's in-place step does not touch; unchanged tensors are shared with
    `before`, so that unchanged projections are known by identity."""

    def part(key, new: LowRank) -> LowRank:
        old = before.get(key)
        same_a = old is not None and torch.equal(old.a, new.a)
        same_b = old is not None and torch.equal(old.b, new.b)
        if same_a and same_b and old.scale == new.scale:
            return old
        a = old.a if same_a else new.a.detach().clone()
        return LowRank(a, old.b if same_b else new.b.detach().clone(), new.scale)

    after = {key: part(key, new) for key, new in adapter.items()}
    unchanged = after.keys() == before.keys() and all(after[k] is before[k] for k in after)
    return before if unchanged else after
