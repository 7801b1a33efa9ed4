"""Choosing the next token from logits.

Contract. Every row draws from a generator of its own, so what a sequence samples depends on its
seed and its logits, not on what runs beside it in the batch.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.records.errors import EmberError


class BadSampling(EmberError):
    """Sampling parameters out of range."""


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen and when a completion ends.

    Temperature 0 is greedy. `top_k` (0: off), `top_p` and `min_p` cut the tail, in this order, of
    the distribution at the temperature. `stop_token_ids` end a completion and belong to it.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop_token_ids: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self):
        checks = {
            "max_tokens": self.max_tokens >= 1,
            "temperature": 0 <= self.temperature < float("inf"),
            "top_k": self.top_k >= 0,
            "top_p": 0 < self.top_p <= 1,
            "min_p": 0 <= self.min_p <= 1,
        }
        for name, holds in checks.items():
            if not holds:
                raise BadSampling(
                    f"{name} is {getattr(self, name)}.\nmax_tokens is 1 or more, temperature and "
                    "top_k 0 or more, top_p in (0, 1], min_p in [0, 1]."
                )

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


def make_generators(
    params: SamplingParams, names: Sequence[tuple[int, int]], device: torch.device | str
) -> list[torch.Generator]:
    """A generator for each row, seeded from the parameters' seed and the row's name."""
    return [
        torch.Generator(device=device).manual_seed(row_seed(params.seed, *name)) for name in names
    ]


def row_seed(*parts: int) -> int:
    """63 bits that any part changes: the parameters' seed, the prompt, the candidate."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def sample(
    logits: Tensor, params: SamplingParams, generators: Sequence[torch.Generator] = ()
) -> tuple[Tensor, Tensor]:
    """Next tokens (B,) and their log-probabilities (B,) in float32, for logits (B, V).

    The log-probability is under the model's distribution at the temperature (1 where greedy),
    before any cut. A generator a row is needed unless greedy.
    """
    logits = logits.float()
    if params.greedy:
        logprobs, tokens = logits.log_softmax(-1).max(-1)
        return tokens, logprobs
    logprobs = (logits / params.temperature).log_softmax(-1)  # also logits, of the same softmax
    # Gumbel's trick as a race of exponential clocks: argmax p / e draws from p.
    clocks = torch.empty_like(logprobs)
    for row, generator in zip(clocks, generators, strict=True):
        row.exponential_(generator=generator)
    tokens = (cut_tail(logprobs, params).exp() / clocks).argmax(-1)
    return tokens, logprobs.gather(1, tokens[:, None])[:, 0]


def cut_tail(logits: Tensor, params: SamplingParams) -> Tensor:
    """Logits (B, V) with -inf where top-k, then top-p, then min-p cut; the best token stays.

    Tokens that equal the last one kept are kept too: which of them came first would be chance.
    """
    if params.top_k and params.top_k < logits.shape[-1]:
        least = logits.topk(params.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if params.top_p < 1:
        ordered = logits.sort(descending=True).values
        shares = ordered.softmax(-1)
        cut = shares.cumsum(-1) - shares >= params.top_p  # the mass before a token is enough
        least = ordered.masked_fill(cut, torch.inf).min(-1, keepdim=True).values
        logits = logits.masked_fill(logits < least, -torch.inf)
    if params.min_p > 0:
        shares = logits.softmax(-1)
        least = params.min_p * shares.max(-1, keepdim=True).values
        logits = logits.masked_fill(shares < least, -torch.inf)
    return logits
