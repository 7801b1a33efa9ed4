"""What is asked of the engine, and what comes of it: prompts, their candidates, completions."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ember.backends.base import Candidate
from ember.backends.sampling import BadSampling, SamplingParams, prompt_key, row_seed
from ember.cache.slotted import Run
from ember.engine.stops import Detokenize, TextStream
from ember.model.architecture import Architecture
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
    `alternatives`: for each token the most likely ids with their raw log-probabilities.
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

    def __init__(self, number: int, tokens: Sequence[int], params: SamplingParams, candidates: int):
        self.number, self.tokens, self.params = number, tokens, params
        self.candidates, self.started, self.ended = candidates, 0, 0
        self.cached = 0
        self.logits: Tensor | None = None  # (1, V), until the last candidate has started
        self.run: Run | None = None
        self.key = prompt_key(tokens)


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

    def to_backend(self) -> Candidate:
        """The row as a backend sees it."""
        seed = row_seed(self.params.seed, self.prompt.key, self.candidate)
        return Candidate(self.prompt.run, self.params, seed)


def make_prompts(
    prompts: Sequence[Sequence[int]],
    sampling_params: SamplingParams | Sequence[SamplingParams] | None,
    num_candidates: int | None,
    *,
    arch: Architecture,
    capacity: int,
    has_text: bool,
) -> list[Prompt]:
    """Checked prompts with their parameters; see `Engine.generate`. `has_text`: stop strings can be
    looked for. Raises `BadPrompt` and `BadSampling`."""
    if sampling_params is None:
        sampling_params = SamplingParams()
    if isinstance(sampling_params, SamplingParams):
        sampling_params = [sampling_params] * len(prompts)
    if len(sampling_params) != len(prompts):
        raise BadPrompt(
            f"{len(sampling_params)} sampling parameters for {len(prompts)} prompts.\n"
            "Give one for all prompts, or one for each."
        )
    if num_candidates is not None and num_candidates < 1:
        raise BadPrompt(f"num_candidates is {num_candidates}.\nAsk for 1 or more.")
    found = []
    for number, (prompt, params) in enumerate(zip(prompts, sampling_params, strict=True)):
        check_prompt(prompt, params.max_tokens, arch, capacity)
        if params.stop and not has_text:
            raise BadSampling(
                "stop strings need the text of tokens, which the engine does not know.\n"
                "Make the engine with detokenize=, or use stop_token_ids."
            )
        found.append(Prompt(number, prompt, params, num_candidates or params.n))
    return found


def check_prompt(prompt: Sequence[int], new_tokens: int, arch: Architecture, capacity: int) -> None:
    """Raises `BadPrompt` unless the prompt and its new tokens can run."""
    if not len(prompt):
        raise BadPrompt("a prompt is empty.\nGive every prompt at least one token.")
    if len(prompt) + new_tokens > capacity:
        raise BadPrompt(
            f"{len(prompt)} prompt tokens and {new_tokens} new ones exceed the engine's "
            f"capacity of {capacity}.\nShorten them or make the engine with more."
        )
    if not (min(prompt) >= 0 and max(prompt) < arch.vocab_size):
        raise BadPrompt(
            f"a prompt has token ids outside of 0 … {arch.vocab_size - 1}.\n"
            "Use the model's own tokenizer."
        )
    if len(prompt) + new_tokens > arch.max_positions:
        raise BadPrompt(
            f"{len(prompt)} prompt tokens and {new_tokens} new ones exceed the model's context "
            f"of {arch.max_positions} tokens.\nShorten them or use a model with a longer context."
        )
