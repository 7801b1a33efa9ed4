"""Completions (P1-4.2): one row per candidate, tokens and log-probabilities side by side."""

from ember.records.schema import WEIGHTS, Column, Schema

COMPLETIONS = Schema(
    "completions",
    "Sampled continuations of prompts, one row per candidate",
    (
        Column("prompt", "int", "", "number of the prompt in its file, from 0"),
        Column("candidate", "int", "", "number among the prompt's candidates, from 0"),
        Column("prompt_text", "str", "", "the prompt, where it was given as text", nullable=True),
        Column("prompt_tokens", "list[int]", "", "token ids of the prompt"),
        Column("cached_tokens", "int", "tokens", "of the prompt, taken from the prefix cache"),
        Column("text", "str", "", "the completion, up to a stop string", nullable=True),
        Column("tokens", "list[int]", "", "token ids sampled, a stop token or string included"),
        Column("logprobs", "list[float]", "", "of each token, as sampled: at the temperature, cut"),
        Column("raw_logprobs", "list[float]", "", "of each token, under the model itself"),
        Column(
            "finish_reason",
            "str",
            "",
            "stop: a stop token or string; length: max_tokens; cancelled: ended early",
            values=("stop", "length", "cancelled"),
        ),
        Column("stop_reason", "str", "", "the stop string, or the stop token's id", nullable=True),
        Column("weights_versions", "str", "", "of each stretch of tokens: version x tokens"),
        Column("seed", "int", "", "seed of the prompt's parameters"),
        Column("temperature", "float", "", "0: greedy"),
        Column("top_k", "int", "", "0: off"),
        Column("top_p", "float", "", "1: off"),
        Column("min_p", "float", "", "0: off"),
        Column("max_tokens", "int", "tokens", "the most tokens asked for"),
        Column("model", "str", "", "name of the model"),
        Column("device", "str", "", "where it ran"),
        Column("dtype", "str", "", "number format of weights and cache"),
        WEIGHTS,
    ),
    key=("prompt", "candidate"),
)
