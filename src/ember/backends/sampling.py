"""Choosing the next token from logits.

Contract. Every row draws from a generator of its own, seeded by its parameters' seed, its prompt
and its number among the prompt's candidates. So what a sequence samples depends on these and its
logits, not on what runs beside it in the batch or where.
"""

import hashlib
import numbers
import operator
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ember.records.errors import EmberError


class BadSampling(EmberError):
    """Sampling parameters out of range."""


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen and when a completion ends; names as in vLLM.

    `n`: candidates of each prompt. Temperature 0 (the default) is greedy. `top_k` (0 or -1: off),
    `top_p` and `min_p` cut the tail, in this order, of the distribution at the temperature.
    `stop_token_ids` end a completion and belong to it. `stop`: strings that end it as soon as its
    text holds one; the tokens remain, the text ends before it (the engine needs `detokenize`).
    Tokens that end the model's own texts end a completion, too, unless `ignore_eos`.
    `max_repeats`: the call fails with `Degenerate` where one token stands so many times in a row.
    `logprobs`: alternatives to report for each token. With a `seed` the same call gives the same
    tokens; None draws one, which the completion names. Wrong types and values raise `BadSampling`.
    """

    n: int = 1
    max_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = 0
    logprobs: int | None = None
    ignore_eos: bool = False
    max_repeats: int | None = None

    def __post_init__(self):
        for name in ("n", "max_tokens", "top_k", "seed", "logprobs", "max_repeats"):
            value = getattr(self, name)
            if value is not None or name not in ("seed", "logprobs", "max_repeats"):
                self._put(name, _whole(name, value))
        for name in ("temperature", "top_p", "min_p"):
            self._put(name, _real(name, getattr(self, name)))
        texts = (self.stop,) if isinstance(self.stop, str) else _items("stop", self.stop)
        ids = _items("stop_token_ids", self.stop_token_ids)
        self._put("stop", texts)
        self._put("stop_token_ids", tuple(_whole("stop_token_ids", token) for token in ids))
        self._put("top_k", 0 if self.top_k == -1 else self.top_k)
        checks = {
            "n": self.n >= 1,
            "max_tokens": self.max_tokens >= 1,
            "temperature": 0 <= self.temperature < float("inf"),
            "top_k": self.top_k >= 0,
            "top_p": 0 < self.top_p <= 1,
            "min_p": 0 <= self.min_p <= 1,
            "logprobs": self.logprobs is None or self.logprobs >= 0,
            "max_repeats": self.max_repeats is None or self.max_repeats >= 2,
            "stop": all(isinstance(text, str) and text for text in self.stop),
            "stop_token_ids": all(token >= 0 for token in self.stop_token_ids),
            "ignore_eos": isinstance(self.ignore_eos, bool),
        }
        for name, holds in checks.items():
            if not holds:
                raise BadSampling(
                    f"{name} is {getattr(self, name)!r}.\nn and max_tokens are 1 or more, "
                    "temperature, top_k, logprobs and stop_token_ids 0 or more, top_p in (0, 1], "
                    "min_p in [0, 1], max_repeats 2 or more, stop strings not empty, ignore_eos "
                    "True or False."
                )

    def _put(self, name: str, value) -> None:
        object.__setattr__(self, name, value)  # frozen for everybody else

    def with_seed(self) -> "SamplingParams":
        """The same with a seed, drawn where there is none."""
        return self if self.seed is not None else replace(self, seed=secrets.randbits(63))

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def ranked(self) -> bool:
        """Whether tokens are cut by rank: top-k or top-p."""
        return not self.greedy and (self.top_k > 0 or self.top_p < 1)

    @property
    def cuts(self) -> bool:
        """Whether any token is cut. Greedy takes the best, which no cut removes."""
        return self.ranked or (not self.greedy and self.min_p > 0)


def _whole(name: str, value) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise BadSampling(f"{name} is {value!r}.\nGive a whole number.") from None


def _real(name: str, value) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise BadSampling(f"{name} is {value!r}.\nGive a number.")
    return float(value)


def _items(name: str, values) -> tuple:
    try:
        return () if values is None else tuple(values)
    except TypeError:
        raise BadSampling(f"{name} is {values!r}.\nGive a list of them.") from None


class Sampled(NamedTuple):
    """What a step chose, (B,) each; `alternatives`: ids and raw log-probabilities (B, n)."""

    tokens: Tensor
    logprobs: Tensor
    raw_logprobs: Tensor
    alternatives: tuple[Tensor, Tensor] | None = None


def prompt_key(prompt: Sequence[int]) -> int:
    """63 bits of a prompt's token ids."""
    return _digest(np.asarray(prompt, dtype=np.int64).tobytes())


def row_seed(*parts: int) -> int:
    """63 bits that any part changes: the parameters' seed, the prompt's key, the candidate."""
    return _digest(repr(parts).encode())


def _digest(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") >> 1


def make_generators(
    params: SamplingParams, names: Sequence[tuple[int, int]], device: torch.device | str
) -> list[torch.Generator]:
    """A generator for each row, seeded from the parameters' seed and the row's name: its prompt's
    key and its number among the candidates."""
    return [
        torch.Generator(device=device).manual_seed(row_seed(params.seed, *name)) for name in names
    ]


def sample(
    logits: Tensor, params: SamplingParams, generators: Sequence[torch.Generator] = ()
) -> Sampled:
    """Next tokens for logits (B, V), with two log-probabilities of each in float32.

    `raw_logprobs`: under the model, that is at temperature 1 without cuts. `logprobs`: under the
    distribution that was drawn from, at the temperature, cut and made to sum to 1; where greedy,
    the raw one. A generator a row is needed unless greedy.
    """
    raw = logits.float().log_softmax(-1)
    if params.greedy:
        logprobs, tokens = raw.max(-1)
        return Sampled(tokens, logprobs, logprobs, _alternatives(raw, params))
    scaled = raw
    if params.temperature != 1:  # raw log-probabilities are logits of the same softmax
        scaled = (raw / params.temperature).log_softmax(-1)
    if params.cuts:
        scaled = cut_tail(scaled, params).log_softmax(-1)
    # Gumbel's trick as a race of exponential clocks: argmax p / e draws from p.
    clocks = torch.empty_like(scaled)
    for row, generator in zip(clocks, generators, strict=True):
        row.exponential_(generator=generator)
    # softmax, not exp, which rounds by where in memory a row lies.
    tokens = (scaled.softmax(-1) / clocks).argmax(-1)
    at = tokens[:, None]
    return Sampled(
        tokens, scaled.gather(1, at)[:, 0], raw.gather(1, at)[:, 0], _alternatives(raw, params)
    )


def _alternatives(raw: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor] | None:
    if not params.logprobs:
        return None
    values, ids = raw.topk(min(params.logprobs, raw.shape[-1]))
    return ids, values


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
