"""Streams on the fast backends: tokens drop out between two steps, and no graph is recorded anew.

Contract. `run` is `ember.streaming.stream.run` for one stream on the kernels or the compiled step,
and gives the same losses and drops. What is held lies side by side in the arena where rollouts keep
prompts, as a soft ring; the newest tokens lie in the row's own memory until they are as many as it
takes, or until a prune, and are then copied after the others. Attention reads both, and where the
arena's part begins, how long it is and where it stands are numbers on the device that a recorded
graph looks up. So a prune moves the few tokens before its last gap (sinks mostly) up to the rest,
rotates their keys for where they now stand, and writes those numbers.

Keys that a prune rotates are kept un-rotated in float32 from their first prune on: their roundings
do not add up. What the host decides by (lengths, numbers of tokens) it keeps itself and waits for
nothing. Methods that ask the model more run on the eager path: `unsupported_reason` says why.
"""

import numpy as np
import torch
from torch import Tensor

from ember.backends.base import Candidate, StreamBackend
from ember.backends.forward import Forward, sent
from ember.backends.packing import PackedDecoder
from ember.backends.sampling import SamplingParams
from ember.backends.select import Case, Unsupported, make_backend, select
from ember.backends.threads import restored_threads, use_threads
from ember.cache.base import BadCacheUse
from ember.cache.copying import copy_kv
from ember.cache.slotted import BLOCK, SlottedCache
from ember.cache.slotted import Run as Place
from ember.measure.clock import between_ms, mark
from ember.model.decoder import Decoder, rotate
from ember.model.rope import UnsupportedModel
from ember.streaming.cache import FAR
from ember.streaming.kept import Kept
from ember.streaming.method import BadMethod, Method, Moment
from ember.streaming.stream import SPARE, Run, prune

OWN = BLOCK  # tokens of the row's own memory
# Methods whose drops lie between the sinks and the window and depend on numbers of tokens alone.
BY_NUMBER = frozenset(
    ("full", "lazy_prune", "max_drop", "overlap", "refresh", "slack", "streaming_llm", "window")
)
WHY_NOT = {
    "fold": "its slots have a bias for each head, which the kernels do not add",
    "key_norm": "it compares keys before rotation, of which only the sinks' are kept",
    "lacache": "its layers hold different tokens",
    "random_eviction": "it drops tokens from within the window",
    "recompute": "each prune is a forward of the whole window",
}


def unsupported_reason(method: Method, decoder: Decoder) -> str | None:
    """Why the eager path runs a method on a decoder; None if a fast one does."""
    if method.name in WHY_NOT:
        return WHY_NOT[method.name]
    if method.observes or "mass" in method.needs:
        return "it ranks tokens by attention mass, which the fast kernels do not give"
    if "entropy" in method.needs:
        return "it looks at the entropy of each prediction, for which the host would have to wait"
    if method.name not in BY_NUMBER:
        return "the fast path does not know which tokens it drops"
    if method.absolute:
        return "its positions grow with the stream, beyond any table of angles"
    if decoder.arch.sliding_layers:
        return "the model's sliding layers would not see the sinks"
    chosen = select(Case.of(decoder))
    return "; ".join(chosen.reasons.values()) if chosen.name == "eager" else None


class RingCache:
    """What a method sees and drops of a stream on a fast backend: `slots`, `ids`, `drop`.

    The arena holds the tokens from `begin` on, slot s rotated for position s + `offset`;
    `copied_bytes` counts keys and values moved, the row's own among them, and keys rotated anew.
    """

    def __init__(
        self,
        decoder: Decoder,
        method: Method,
        total: int,
        *,
        spare: float = SPARE,
        backend: str | None = None,
        graphs: bool = True,
        fused: frozenset[str] | None = None,
    ):
        """For a stream of `total` tokens. `spare`: memory beyond the peak, as a fraction of it; 0:
        no soft ring, what comes after a drop moves down. `backend`: by default the fastest.
        `fused`: see `ember.backends.cuda.step.FUSED`."""
        arch, weight = decoder.arch, decoder.embed_tokens.weight
        if arch.sliding_layers:
            raise UnsupportedModel(unsupported_reason(method, decoder) + "; stream eagerly")
        name = select(Case.of(decoder), backend).name
        self.capacity = min(method.peak, total) if method.prunes else total
        self._ring = bool(spare and method.prunes)
        room = self.capacity + int(spare * self.capacity) * self._ring
        like = {"device": weight.device, "dtype": weight.dtype}
        memory = SlottedCache(arch, prompt_tokens=room, rows=1, row_tokens=OWN, **like)
        packed = PackedDecoder(decoder, laid=True) if name == "kernels" else None
        far = FAR if method.prunes else 0
        positions = far + room + OWN + method.growth
        self.backend: StreamBackend = make_backend(
            name,
            decoder,
            memory,
            capacity=positions,
            forward=Forward(decoder, weights=packed),
            graphs=graphs,
        )
        if fused is not None:
            self.backend.step.fused = fused
        self.path = name
        if name == "kernels" and weight.is_cuda and graphs:
            self.path = "kernels, graph"
        self._kv, self._own_kv = memory.prompts, memory.rows[:, :, 0]
        # Before a drop's last gap lie the sinks, and where old tokens are chosen these and what is
        # to go in a later portion.
        chosen = method.reserved + method.growth if method.reserved else 0
        slots, kernels = min(method.n_sink + chosen, self.capacity), name == "kernels"
        self._kept = Kept(arch, self._kv, slots, positions, kernels=kernels)
        self._token_bytes = arch.kv_bytes_per_token(weight.element_size())
        self.ids = torch.zeros(1, 1, 0, dtype=torch.long)
        self.begin = self.offset = self.base = self._own = self.copied_bytes = 0

    @property
    def slots(self) -> int:
        """Tokens held."""
        return self.ids.shape[2]

    def prefill(self, tokens: Tensor) -> Tensor:
        """Runs the first tokens (1, T) at once; logits (1, V) of the last."""
        place = Place(0, tokens.shape[1])
        logits = self.backend.forward(tokens, self.backend.cache.view(place))
        greedy = SamplingParams(max_tokens=OWN)
        self.backend.join([Candidate(place, greedy, 0)], logits)
        self.ids = torch.arange(tokens.shape[1])[None, None]
        return logits

    def step(self, token: Tensor) -> Tensor:
        """Runs a token (1,) whatever is sampled; logits (1, V), overwritten by the next step."""
        if self._own == OWN:
            self._flush()
            self._seat()
        self.backend.sample()
        self.backend.tokens.copy_(token)
        self.backend.advance()
        self._own += 1
        number = self.base + self.offset + self.slots
        self.ids = torch.cat([self.ids, torch.tensor([[[number]]])], 2)
        return self.backend.logits

    def drop(self, places: Tensor) -> None:
        """Drops the tokens at `places`, (n,) or (1, 1, n), each once, in any order."""
        gone, held = sorted(places.flatten().tolist()), self.slots
        if not gone or len({*gone}) < len(gone) or not 0 <= gone[0] <= gone[-1] < held:
            raise BadCacheUse(
                f"cannot drop {gone} of {held} tokens.\nGive slots that are held, each once."
            )
        self._flush()
        count, after = len(gone), gone[-1] + 1
        kept = sorted({*range(after)} - {*gone})  # before the last gap
        head = len(kept)
        self._kept.take(kept, after, self.begin, self.offset)
        if self._ring:
            self.begin += count
        else:
            self._move(after, head, held - after)
        self.offset += count
        self.ids = torch.cat([self.ids[:, :, kept], self.ids[:, :, after:]], 2)
        moved = self._ring or head != gone[0]  # else they lie where they lay
        self._kept.put(head, self.begin, self.offset, values=moved)
        self.copied_bytes += head * self._token_bytes // (1 if moved else 2)
        if self.offset > FAR:
            self._rebase()
        self._seat()

    def _seat(self) -> None:
        """Tells the backend where everything lies; nothing is the row's own."""
        self.backend.reseat(Place(self.begin, self.slots), self.offset)

    def _place(self, start: int, count: int) -> Tensor:
        """Memory of keys and values of slots, (L, 2, Hkv, count, D)."""
        return self._kv[..., self.begin + start : self.begin + start + count, :]

    def _flush(self) -> None:
        """Copies the row's own tokens after the others."""
        if not self._own:
            return
        if self.begin + self.slots > self._kv.shape[3]:
            self._wrap()
        last = self._place(self.slots - self._own, self._own)
        copy_kv(last, self._own_kv[..., : self._own, :])
        self.copied_bytes += self._own * self._token_bytes
        self._own = 0

    def _wrap(self) -> None:
        """Copies what the arena holds to its beginning."""
        self._move(0, -self.begin, self.slots - self._own)
        self.begin = 0

    def _move(self, start: int, target: int, count: int) -> None:
        """Copies `count` slots from `start` on to slots from `target` on, layer by layer."""
        if not count:
            return
        for source, place in zip(
            self._place(start, count), self._place(target, count), strict=True
        ):
            overlap = start - target < count
            copy_kv(place, source.clone() if overlap else source)
        self.copied_bytes += count * self._token_bytes

    def _rebase(self) -> None:
        """Counts positions from 0 again."""
        held, offset = self.slots, self.offset
        self.base, self.offset = self.base + offset, 0
        (c, s), (cos, sin) = (
            (self._kept.cos[start : start + held], self._kept.sin[start : start + held])
            for start in (offset, 0)
        )
        back = cos * c + sin * s, sin * c - cos * s  # from one angle to the other
        for keys in self._place(0, held)[:, 0]:
            keys.copy_(rotate(keys.float(), *back))
        self._kept.put(self._kept.known, self.begin, self.offset, values=False)
        self.copied_bytes += held * self._token_bytes // 2


@restored_threads()
@torch.inference_mode()
def run(
    decoder: Decoder,
    tokens: Tensor,
    method: Method,
    *,
    prefill: int,
    structural: Tensor | None = None,
    timed: bool = False,
    **options,
) -> Run:
    """Feeds one stream (1, T) under a method: `prefill` tokens at once, then one at a time.

    Losses are known from the last prefilled token on and NaN before, and of a `timed` run not
    measured at all. Its times are the device's, from the end of one token's work to the next's,
    drops included. `options`: see `RingCache`. Raises `Unsupported` where no fast path serves.
    """
    rows, total = tokens.shape
    if (reason := unsupported_reason(method, decoder)) is not None:
        raise Unsupported(f"{method.name} on the fast path: {reason}.\nStream it eagerly.")
    if rows != 1:
        raise BadMethod(f"the fast path streams one row, not {rows}; run one at a time")
    if "structure" in method.needs and structural is None:
        raise BadMethod(f"{method.name}: needs to know which tokens end a line; hand them in")
    device = decoder.embed_tokens.weight.device
    cache = RingCache(decoder, method, total, **options)
    use_threads(cache.backend.threads or torch.get_num_threads())
    here = sent(tokens.cpu(), device)
    # Methods look at numbers of tokens only: all that is theirs stays with the host.
    moment = Moment(decoder, cache, tokens.cpu())
    moment.structural = None if structural is None else structural.cpu()
    nll = torch.full((1, total), torch.nan, device=device, dtype=torch.float64)
    found = Run(np.zeros(0), np.zeros(total, np.int64), path=cache.path)

    def score(logits: Tensor) -> None:
        if not timed and moment.step < total:
            losses = -logits.float().log_softmax(-1)
            nll[:, moment.step - 1] = losses.gather(-1, here[:, moment.step, None])[:, 0]

    marks = [mark(device)]
    first = min(prefill, cache.capacity)
    logits = cache.prefill(here[:, :first])
    found.visible[:first] = np.arange(1, first + 1)
    moment.step = found.prefilled = first
    score(logits)
    prune(method, moment, found)
    marks.append(mark(device))
    while moment.step < total:
        logits = cache.step(here[:, moment.step])
        found.visible[moment.step] = cache.slots
        moment.step += 1
        score(logits)
        prune(method, moment, found)
        marks.append(mark(device))
    found.calls, found.copied_bytes = 1 + total - first, cache.copied_bytes
    found.nll = nll[:, :-1].cpu().numpy()
    if timed:
        found.prefill_ms, *times = between_ms(marks)
        found.token_ms = np.r_[np.zeros(first), times]
    return found
