"""What is asked of the engine, and what comes of it: prompts, their candidates, completions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ember.backends.base import Candidate
from ember.backends.sampling import BadSampling, SamplingParams, prompt_key, row_seed
from ember.cache.slotted import Run
from ember.engine.stops import Detokenize, TextStream
from ember.model.architecture import Architecture
from ember.model.decoder import Decoder
from ember.records.errors import EmberError


class BadPrompt(EmberError):
    """A prompt that the engine cannot run; the message says why."""


@dataclass(frozen=True)
class Completion:
    """One sampled continuation.

    `logprobs` and `raw_logprobs` belong to `tokens` (see `sampling.sample`). `finish_reason` is
    "stop", "length" or "cancelled"; `stop_reason` the stop token's id or the stop string.
    `versions` is the weights version that each token was sampled with. `cached_tokens` of the
    prompt came from the prefix cache. `text` needs a detokenizer and ends before the stop string.
    `alternatives`: for each token the most likely ids with their raw log-probabilities. `seed`: the
    parameters', or what was drawn where they had none.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int
    versions: tuple[str, ...]
    raw_logprobs: tuple[float, ...] = ()
    stop_reason: int | str | None = None
    text: str | None = None
    alternatives: tuple[tuple[tuple[int, float], ...], ...] | None = None
    seed: int = 0


@dataclass(frozen=True)
class Chunk:
    """New tokens of one candidate; the last chunk of a candidate has its finish reason."""

    prompt: int
    candidate: int
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    raw_logprobs: tuple[float, ...]
    text: str | None
    finish_reason: str | None


class Prompt:
    """A prompt, how far its candidates are, and where its KV lies (`run`) while they need it."""

    def __init__(
        self,
        number: int,
        tokens: Sequence[int],
        params: SamplingParams,
        candidates: int,
        eos_token_ids: Sequence[int] = (),
    ):
        self.number, self.tokens, self.params = number, tokens, params
        self.stops = frozenset((*params.stop_token_ids, *eos_token_ids))  # end its candidates
        self.candidates, self.started, self.ended = candidates, 0, 0
        self.cached = 0
        # (1, V), until the last candidate has started. None where the KV lacks the last token,
        # which is then the first that candidates run.
        self.logits: Tensor | None = None
        self.run: Run | None = None
        self.key = prompt_key(tokens)

    @property
    def lacks_last(self) -> bool:
        """Whether its KV, which is there, lacks its last token."""
        return self.run is not None and self.run.length < len(self.tokens)


class Row:
    """One candidate: its parameters, and what it has sampled as far as the host knows."""

    def __init__(self, prompt: Prompt, candidate: int, decode: Detokenize | None):
        params = prompt.params
        self.prompt, self.candidate, self.params = prompt, candidate, params
        self.issued = 0  # tokens that it has been told to sample
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.raw: list[float] = []
        self.versions: list[str] = []
        self.alternatives: list | None = [] if params.logprobs else None
        self.finish: str | None = None
        self.stop_reason: int | str | None = None
        self.text = TextStream(decode, params.stop) if decode is not None and params.stop else None
        self.streamed = 0  # tokens given out

    @property
    def own(self) -> int:
        """Tokens of its own once what it has not run yet is stored; 0: nothing is to be run."""
        return self.issued + self.prompt.lacks_last

    def to_backend(self) -> Candidate:
        """The row as a backend sees it."""
        seed = row_seed(self.params.seed, self.prompt.key, self.candidate)
        last = self.prompt.tokens[-1] if self.prompt.lacks_last else None
        return Candidate(self.prompt.run, self.params, seed, last)


def make_prompts(
    prompts: Iterable[Iterable[int]],
    sampling_params: SamplingParams | Iterable[SamplingParams] | None,
    num_candidates: int | None,
    *,
    decoder: Decoder,
    capacity: int,
    has_text: bool,
) -> list[Prompt]:
    """Checked prompts with their parameters; see `Engine.generate`. `has_text`: stop strings can be
    looked for. Raises `BadPrompt` and `BadSampling`."""
    lists = list(_items("prompts", prompts))
    if isinstance(sampling_params, SamplingParams | None):
        params = [sampling_params or SamplingParams()] * len(lists)
    else:
        params = list(_items("sampling_params", sampling_params))
    if len(params) != len(lists):
        raise BadPrompt(
            f"{len(params)} sampling parameters for {len(lists)} prompts.\n"
            "Give one for all prompts, or one for each."
        )
    if num_candidates is not None and not (_is_whole(num_candidates) and num_candidates >= 1):
        raise BadPrompt(f"num_candidates is {num_candidates!r}.\nAsk for 1 or more.")
    found = []
    for number, (prompt, wanted) in enumerate(zip(lists, params, strict=True)):
        if not isinstance(wanted, SamplingParams):
            raise BadSampling(f"{wanted!r} is given as sampling parameters.\nGive SamplingParams.")
        tokens = check_prompt(prompt, wanted.max_tokens, decoder.arch, capacity)
        if wanted.stop and not has_text:
            raise BadSampling(
                "stop strings need the text of tokens, which the engine does not know.\n"
                "Make the engine with detokenize=, or use stop_token_ids."
            )
        eos = () if wanted.ignore_eos else decoder.eos_token_ids
        candidates = num_candidates or wanted.n
        found.append(Prompt(number, tokens, wanted.with_seed(), candidates, eos))
    return found


def check_prompt(
    prompt: Iterable[int], new_tokens: int, arch: Architecture, capacity: int
) -> list[int]:
    """The prompt's token ids. Raises `BadPrompt` unless they and the new tokens can run."""
    tokens = _ids(prompt)
    if not tokens:
        raise BadPrompt("a prompt is empty.\nGive every prompt at least one token.")
    if set(map(type, tokens)) != {int}:
        wrong = [one for one in tokens if not _is_whole(one)]
        if wrong:
            raise BadPrompt(
                f"a prompt holds {wrong[0]!r:.60}.\n"
                "Give a list of token ids, which are whole numbers."
            )
        tokens = list(map(int, tokens))
    whole = len(tokens) + new_tokens
    if whole > capacity:
        raise BadPrompt(
            f"{len(tokens)} prompt tokens and {new_tokens} new ones exceed the engine's "
            f"capacity of {capacity}.\nShorten them or make the engine with more."
        )
    if not (min(tokens) >= 0 and max(tokens) < arch.vocab_size):
        raise BadPrompt(
            f"a prompt has token ids outside of 0 … {arch.vocab_size - 1}.\n"
            "Use the model's own tokenizer."
        )
    if whole > arch.max_positions:
        raise BadPrompt(
            f"{len(tokens)} prompt tokens and {new_tokens} new ones exceed the model's context "
            f"of {arch.max_positions} tokens.\nShorten them or use a model with a longer context."
        )
    return tokens


def _items(name: str, values) -> Iterable:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise BadPrompt(f"{name} is {values!r:.60}.\nGive a list with one entry a prompt.")
    return values


def _ids(prompt) -> list:
    if isinstance(prompt, Tensor | np.ndarray) and prompt.ndim:
        return prompt.tolist()
    if isinstance(prompt, str | Tensor | np.ndarray) or not isinstance(prompt, Iterable):
        raise BadPrompt(
            f"a prompt is {prompt!r:.60}.\nGive a list of token ids, by the model's tokenizer."
        )
    return list(prompt)


def _is_whole(value) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
