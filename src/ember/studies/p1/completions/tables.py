"""Completions (P1-4.2): one row per candidate, tokens and log-probabilities side by side."""

from ember.records import schema as s

COMPLETIONS = s.Schema(
    "completions",
    "Sampled continuations of prompts, one row per candidate",
    (
        s.integer("prompt", "", "number of the prompt in its file, from 0"),
        s.integer("candidate", "", "number among the prompt's candidates, from 0"),
        s.text("prompt_text", "the prompt, where it was given as text", nullable=True),
        s.Column("prompt_tokens", "list[int]", "", "token ids of the prompt"),
        s.integer("cached_tokens", "tokens", "of the prompt, taken from the prefix cache"),
        s.text("text", "the completion, up to a stop string", nullable=True),
        s.Column("tokens", "list[int]", "", "token ids sampled, a stop token or string included"),
        s.Column("logprobs", "list[float]", "", "of each token, as sampled"),
        s.Column("raw_logprobs", "list[float]", "", "of each token, under the model itself"),
        s.text("finish_reason", "what ended it", values=("stop", "length", "cancelled")),
        s.text("stop_reason", "the stop string, or the stop token's id", nullable=True),
        s.text("weights_versions", "of each stretch of tokens: version x tokens"),
        s.integer("seed", "", "seed of the prompt's parameters"),
        s.number("temperature", "", "0: greedy"),
        s.integer("top_k", "", "0: off"),
        s.number("top_p", "", "1: off"),
        s.number("min_p", "", "0: off"),
        s.integer("max_tokens", "tokens", "the most tokens asked for"),
        s.MODEL,
        s.DEVICE,
        s.DTYPE,
        s.WEIGHTS,
    ),
    key=("prompt", "candidate"),
)
