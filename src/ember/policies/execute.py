"""Carries out plans on the real decoder: partial prefills, restarts, corrections (P1-5, P1-8).

A `PromptKV` holds what a prompt's prefill leaves behind: its KV in a `CorrectableCache`, and the
hidden states entering the boundary layers. `run_plan` brings it up to date as a `Plan` says, by the
engine's own forward, and `PolicyRunner` asks a policy for the plan: KV crosses an update in no
other way.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ember.backends.forward import Forward, hand_over
from ember.cache.contiguous import ContiguousCache
from ember.cache.copying import copy_kv
from ember.engine.prefill import Phase, untimed
from ember.lora.adapter import LowRank
from ember.model.decoder import Decoder
from ember.policies.correctable import Adapter, Band, CorrectableCache
from ember.policies.plan import BadPolicy, Plan, Request, Update
from ember.policies.policy import CachePolicy


@dataclass
class PromptKV:
    """The KV of one prompt and what its reuse needs. T tokens, hidden size H."""

    tokens: Tensor  # (1, T), of the host
    cache: CorrectableCache
    hidden: dict[int, Tensor] = field(default_factory=dict)  # layer -> entering it, (1, T, H)
    top: Tensor | None = None  # last token after the last layer, (1, 1, H)

    @classmethod
    def empty(cls, decoder: Decoder, tokens: Sequence[int]) -> "PromptKV":
        """Room for a prompt's KV, in the decoder's format and on its device."""
        ids = torch.tensor([list(tokens)])
        return cls(ids, CorrectableCache(decoder, ids.shape[1]))

    @property
    def length(self) -> int:
        """T."""
        return self.tokens.shape[1]

    @property
    def bytes(self) -> dict[str, int]:
        """Memory by what it is for: kv, hidden, factors, raw_keys."""
        parts = {
            "hidden": [*self.hidden.values(), self.top],
            "factors": [self.cache.factors],
            "raw_keys": [self.cache.raw_keys],
        }
        sizes = {
            name: sum(tensor.nbytes for tensor in tensors if tensor is not None)
            for name, tensors in parts.items()
        }
        return {"kv": self.cache.bytes} | sizes


@torch.inference_mode()
def run_plan(
    forward: Forward,
    kv: PromptKV,
    plan: Plan,
    *,
    into: ContiguousCache | None = None,
    boundaries: Sequence[int] = (),
    adapter: Adapter | None = None,
    donor: PromptKV | None = None,
    leave_last: bool = False,
    phase: Phase = untimed,
) -> Tensor | None:
    """Bring `kv` up to date with the decoder's present weights as `plan` says; logits (1, V).

    into: a cache of one row that is to have the KV, too, instead of what it holds. leave_last: a
    plan that runs the last token alone leaves it to the caller; logits are then None, and `kv` and
    `into` hold the other tokens. boundaries: layers whose entering hidden states are kept for
    restarts. adapter: present low-rank part of the weights; keeps the factors that later
    corrections need. donor: a prompt with the same first
    plan.prefix_tokens tokens, computed with the present weights. Phases: correction, prefill.
    Raises BadPolicy if the plan needs something that is not stored, StaleFactors if a correction is
    impossible.
    """
    layers, tokens, cache = forward.decoder.arch.num_layers, kv.length, kv.cache
    plan.check(layers, tokens)
    rectangles = plan.rectangles(layers, tokens)
    _forget(cache, rectangles)
    if plan.prefix_tokens:
        with phase("prefill"):
            _copy_prefix(kv, donor, plan.prefix_tokens)
    _check_whole(cache, rectangles)
    if plan.correct:
        with phase("correction"):
            cache.correct(adapter or {})
    with phase("prefill"):
        bands = _bands(plan, layers, tokens)
        if into is None:
            into = cache
        else:
            into.reset()
        if leave_last and tokens > 1 and bands == [(0, layers, tokens - 1)]:
            _load(into, cache, bands)
            kv.top = None
            return None
        memory = cache if into is cache else forward.place(into)
        _load(memory, cache, bands)
        passage = forward.run(
            _entering(kv, plan.start_layer, plan.start_token, layers),
            memory,
            start=plan.start_layer,
            stop=plan.stop_layer,
            keep=boundaries,
            tap=cache.keeping(bands, tokens, adapter),
        )
        _save(cache, memory, bands, tokens)
        hand_over(memory, into)
        for layer, x in passage.hidden.items():
            _keep(kv.hidden, layer, x, plan.start_token, tokens)
        kv.top = passage.top
    return passage.logits


def prompt_key(tokens: Sequence[int]) -> str:
    """Content hash of token ids."""
    return hashlib.sha256(torch.tensor(list(tokens)).numpy().tobytes()).hexdigest()


@dataclass(frozen=True)
class Prefill:
    """A prompt ready to decode: logits (1, V) of its last token (None: it is still to be run), its
    KV, how and by what made."""

    logits: Tensor | None
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
        self.store: dict[str, PromptKV] = {}  # by the prompt's key
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

    def prefill(
        self,
        round: int,
        tokens: Sequence[int],
        shared_prefix: int = 0,
        *,
        forward: Forward | None = None,
        into: ContiguousCache | None = None,
        leave_last: bool = False,
        phase: Phase = untimed,
    ) -> Prefill:
        """Bring a prompt's KV up to date as the policy plans, and record that it was done.

        `forward`, by default the decoder itself, and the rest as in `run_plan`. The last token is
        not left out where hidden states are kept, of which it would leave a gap.
        Where that fails the prompt is forgotten, by the policy too: its next prefill is a full one.
        """
        request = Request(round, prompt_key(tokens), len(tokens), shared_prefix)
        prefix = (self.version, prompt_key(tokens[:shared_prefix]))
        plan = self.policy.plan(request)
        kv = self.store.pop(request.prompt, None) or PromptKV.empty(self.decoder, tokens)
        try:
            logits = run_plan(
                forward or Forward(self.decoder),
                kv,
                plan,
                into=into,
                boundaries=self.policy.boundaries,
                adapter=self.adapter if self.policy.keeps_factors else None,
                donor=self._donors.get(prefix) if plan.prefix_tokens else None,
                leave_last=leave_last and not self.policy.boundaries,
                phase=phase,
            )
        except BaseException:
            self._donors = {key: other for key, other in self._donors.items() if other is not kv}
            self.policy.forget(request.prompt)
            raise
        self.store[request.prompt] = kv
        self.policy.record(request, plan)
        if shared_prefix and self.policy.history.prefix_donor(request) == request.prompt:
            self._donors[prefix] = kv
        return Prefill(logits, kv, plan, self.version)


def _entering(kv: PromptKV, layer: int, first: int, layers: int) -> Tensor:
    """What enters `layer`: token ids (1, T - first), or hidden states (1, T - first, H)."""
    if layer == 0:
        return kv.tokens[:, first:]
    if layer == layers and kv.top is not None:
        return kv.top
    if layer not in kv.hidden:
        kept = ", ".join(map(str, sorted(kv.hidden))) or "none"
        raise BadPolicy(
            f"no hidden states entering layer {layer} are stored (kept: {kept}); prefill in full "
            f"with boundaries=({layer},) first"
        )
    return kv.hidden[layer][:, first:]


def _forget(cache: CorrectableCache, rectangles: Sequence[tuple[int, int, int, int]]) -> None:
    """Drops what a plan computes anew."""
    for start, _, first, last in rectangles:
        for layer in range(first, last):
            cache.truncate(min(start, cache.length(layer)), [layer])


def _check_whole(cache: CorrectableCache, rectangles) -> None:
    """Raises BadPolicy where tokens that a plan reuses are not there."""
    for start, _, first, last in rectangles:
        shortest = min(cache.length(layer) for layer in range(first, last))
        if shortest < start:
            raise BadPolicy(
                f"tokens from {start} on are to run over {shortest} stored ones; prefill in full "
                "first"
            )


def _bands(plan: Plan, layers: int, tokens: int) -> list[Band]:
    """All layers, and from which token on a plan computes them; `tokens` where it does not."""
    bands = [
        (0, plan.start_layer, tokens),
        (plan.start_layer, plan.stop_layer, plan.start_token),
        (plan.stop_layer, layers, tokens - 1),
    ]
    return [band for band in bands if band[0] < band[1]]


def _load(memory: ContiguousCache, cache: CorrectableCache, bands: Sequence[Band]) -> None:
    """What a plan reuses, into the memory in which it runs."""
    if memory is cache:
        return
    for first, end, start in bands:
        if start:
            source = cache.kv[first:end, ..., :start, :]
            copy_kv(memory.kv[first:end, ..., :start, :], source)
            memory.advance(start, range(first, end))


def _save(
    cache: CorrectableCache, memory: ContiguousCache, bands: Sequence[Band], tokens: int
) -> None:
    """What a plan has computed, from the memory in which it ran."""
    if memory is cache:
        return
    for first, end, start in bands:
        if start < tokens:
            new = memory.kv[first:end, ..., start:tokens, :]
            copy_kv(cache.kv[first:end, ..., start:tokens, :], new)
            cache.advance(tokens - start, range(first, end))


def _keep(store: dict[int, Tensor], layer: int, x: Tensor, first: int, tokens: int) -> None:
    """Hidden states (1, tokens - first, H) entering a layer, over what is there."""
    if first == 0:
        store[layer] = x
    elif layer in store:
        store[layer][:, first:tokens] = x
    else:
        raise BadPolicy(
            f"hidden states of earlier tokens entering layer {layer} were not kept; prefill in "
            "full first"
        )


def _copy_prefix(kv: PromptKV, donor: PromptKV | None, length: int) -> None:
    """Take the first `length` tokens' KV, hidden states and factors from another prompt."""
    if donor is None or not torch.equal(donor.tokens[:, :length], kv.tokens[:, :length]):
        raise BadPolicy(
            f"the plan reuses a shared prefix of {length} tokens that no prompt of this round has "
            "computed with the present weights; prefill in full"
        )
    if donor is kv:
        return
    kv.cache.copy_prefix(donor.cache, length)
    for layer, x in donor.hidden.items():
        if layer not in kv.hidden:
            kv.hidden[layer] = x.new_empty(1, kv.length, x.shape[2])
        kv.hidden[layer][:, :length] = x[:, :length]


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
