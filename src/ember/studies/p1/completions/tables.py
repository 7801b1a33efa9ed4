"""Completions (P1-4.2): one row per candidate, tokens and log-probabilities side by side."""

from ember.records.schema import (
    DEVICE,
    DTYPE,
    MODEL,
    WEIGHTS,
    Column,
    Schema,
    integer,
    number,
    text,
)

COMPLETIONS = Schema(
    "completions",
    "Sampled continuations of prompts, one row per candidate",
    (
        integer("prompt", "", "number of the prompt in its file, from 0"),
        integer("candidate", "", "number among the prompt's candidates, from 0"),
        text("prompt_text", "the prompt, where it was given as text", nullable=True),
        Column("prompt_tokens", "list[int]", "", "token ids of the prompt"),
        integer("cached_tokens", "tokens", "of the prompt, taken from the prefix cache"),
        text("text", "the completion, up to a stop string", nullable=True),
        Column("tokens", "list[int]", "", "token ids sampled, a stop token or string included"),
        Column("logprobs", "list[float]", "", "of each token, as sampled: at the temperature, cut"),
        Column("raw_logprobs", "list[float]", "", "of each token, under the model itself"),
        text(
            "finish_reason",
            "stop: a stop token or string; length: max_tokens; cancelled: ended early",
            values=("stop", "length", "cancelled"),
        ),
        text("stop_reason", "the stop string, or the stop token's id", nullable=True),
        text("weights_versions", "of each stretch of tokens: version x tokens"),
        integer("seed", "", "seed of the prompt's parameters"),
        number("temperature", "", "0: greedy"),
        integer("top_k", "", "0: off"),
        number("top_p", "", "1: off"),
        number("min_p", "", "0: off"),
        integer("max_tokens", "tokens", "the most tokens asked for"),
        MODEL,
        DEVICE,
        DTYPE,
        WEIGHTS,
    ),
    key=("prompt", "candidate"),
)
