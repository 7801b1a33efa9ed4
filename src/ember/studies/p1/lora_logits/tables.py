"""Logits with and without an adapter: what `ember check` writes (P1-3.2)."""

from ember.records.schema import (
    DEVICE,
    DTYPE,
    EVIDENCE,
    MODEL,
    WEIGHTS,
    Schema,
    integer,
    number,
    text,
)

LORA_LOGITS = Schema(
    "lora_logits",
    "Logits of the next token with and without an adapter",
    (
        integer("position", "", "token of the prompt whose next one is predicted, from 0"),
        integer("token", "", "id of the vocabulary"),
        number("base_logit", "", "without the adapter"),
        number("adapted_logit", "", "with the adapter"),
        text("adapter", "the adapter's folder"),
        text("adapter_hash", "content hash, with the scale in it"),
        number("lora_scale", "", "factor over the adapter's own scaling"),
        DTYPE,
        MODEL,
        WEIGHTS,
        DEVICE,
        EVIDENCE,
    ),
    key=("position", "token"),
)
