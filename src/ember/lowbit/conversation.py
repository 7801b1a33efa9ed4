"""A conversation over turns whose KV stays: only what a user says anew is prefilled (L-5).

Contract. What was said is one row of token ids, the same that a replay from nothing would run. A
turn runs the user's words with the template around them and decodes the answer; when it has been
given, the answer and the tokens that the template ends it with are run in one forward and kept, so
that the next turn finds every token before its own.
"""

from dataclasses import dataclass, replace

from ember.backends.sampling import SamplingParams
from ember.cache.radix import RadixCache
from ember.engine.engine import Engine
from ember.engine.prefill import PlainPrefill, PrefixPrefill
from ember.measure.clock import PhaseClock
from ember.model.decoder import Decoder
from ember.records.errors import EmberError, nearest
from ember.text.tokenizer import Tokenizer


class BadConversation(EmberError):
    """A template that is unknown or that the tokenizer lacks tokens of."""


@dataclass(frozen=True)
class Template:
    """What stands around the words of both sides. `special`: single tokens of the tokenizer."""

    user: str  # with {text}; up to where the answer begins
    end: str  # after an answer
    special: tuple[str, ...] = ()


TEMPLATES = {
    "plain": Template("User: {text}\nAssistant:", "\n"),
    "chatml": Template(
        "<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>\n",
        ("<|im_start|>", "<|im_end|>"),
    ),
}


@dataclass(frozen=True)
class Turn:
    """What a turn took. Milliseconds by the wall clock; tokens of the cache are those before it."""

    answer: tuple[int, ...]
    text: str
    user_tokens: int  # with the template around them
    cached_tokens: int  # reused by the prefill
    length: int  # tokens of the conversation after it
    prefill_ms: float
    decode_ms: float
    close_ms: float  # running and keeping the answer, after it was given


class Conversation:
    """`say` adds a turn. `tokens` is the whole conversation."""

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        template: str = "plain",
        *,
        capacity: int,
        kept: bool = True,
        backend: str | None = None,
    ):
        """`capacity`: the most tokens of the conversation; `kept`: False replays it whole in every
        turn. Raises BadConversation for a template that is unknown or not the tokenizer's."""
        if template not in TEMPLATES:
            known = f"{nearest(template, TEMPLATES)} Choose from {', '.join(TEMPLATES)}."
            raise BadConversation(f"no template {template!r}.{known}")
        self.template, self.tokenizer, self.kept = TEMPLATES[template], tokenizer, kept
        for token in self.template.special:
            if len(tokenizer.encode(token)) != 1:
                raise BadConversation(
                    f"{token} is no token of this model's tokenizer.\nUse the template plain."
                )
        weight = decoder.embed_tokens.weight
        # Twice: a node that is divided holds both parts for a moment.
        budget = 2 * capacity * decoder.arch.kv_bytes_per_token(weight.element_size())
        self._clock = PhaseClock(str(weight.device))
        self.engine = Engine(
            decoder,
            capacity=capacity,
            prefill=PrefixPrefill(RadixCache(budget)) if kept else PlainPrefill(),
            backend=backend,
        )
        self.tokens: list[int] = []

    def say(self, text: str, params: SamplingParams) -> Turn:
        """A turn of the user and its answer. Raises `BadPrompt` where the capacity is too small."""
        said = self.tokenizer.encode(self.template.user.format(text=text))
        end = self.tokenizer.encode(self.template.end)
        if self.template.special:
            params = replace(params, stop_token_ids=(*params.stop_token_ids, end[0]))
        self._clock.reset()
        [[done]] = self.engine.generate([self.tokens + said], params, 1, clock=self._clock)
        taken = self._clock.times_ms()
        # A model that ends its turn itself has sampled the template's first token.
        rest = end[1:] if done.tokens[-1] == end[0] else end
        self.tokens += [*said, *done.tokens, *rest]
        return Turn(
            answer=done.tokens,
            text=self.tokenizer.decode(done.tokens, skip_special=True),
            user_tokens=len(said),
            cached_tokens=done.cached_tokens,
            length=len(self.tokens),
            prefill_ms=sum(taken.get(name, 0.0) for name in ("lookup", "prefill", "store")),
            decode_ms=sum(taken.get(name, 0.0) for name in ("decode", "sampling", "transfer")),
            close_ms=self._close() if self.kept else 0.0,
        )

    def _close(self) -> float:
        """Keeps the whole conversation; milliseconds."""
        self._clock.reset()
        self.engine.prefill_prompt(self.tokens, clock=self._clock)
        return sum(self._clock.times_ms().values())
