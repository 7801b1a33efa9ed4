"""Logits with and without an adapter: what `ember check` writes (P1-3.2)."""

from ember.records import schema as s

LORA_LOGITS = s.Schema(
    "lora_logits",
    "Logits of the next token with and without an adapter",
    (
        s.integer("position", "", "token of the prompt whose next one is predicted, from 0"),
        s.integer("token", "", "id of the vocabulary"),
        s.number("base_logit", "", "without the adapter"),
        s.number("adapted_logit", "", "with the adapter"),
        s.text("adapter", "the adapter's folder"),
        s.text("adapter_hash", "content hash, with the scale in it"),
        s.number("lora_scale", "", "factor over the adapter's own scaling"),
        *s.ADAPTED_ON,
    ),
    key=("position", "token"),
)
