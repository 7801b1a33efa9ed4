"""Table of prefills restarted at a layer and of corrections of stale KV, one row per repeat."""

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

RESTART_SWEEP = Schema(
    "restart_sweep",
    "Time to bring a prompt's KV cache up to date: part of the prefill, or the low-rank correction",
    (
        integer("context", "tokens", "prompt length"),
        integer("num_layers", "layers", "layers of the model"),
        text(
            "action",
            "recompute: run tokens from start_token on through the layers from "
            "start_layer up, to logits; correct: correct the KV of the layers from "
            "start_layer up in place",
            values=("recompute", "correct"),
        ),
        integer("start_layer", "", "first layer that runs; num_layers: the head alone"),
        integer("start_token", "", "first token that runs; 0 for a correction"),
        integer("rank", "", "of the correction, or of factors kept for one; 0: none"),
        integer("repeat", "", "recorded pass over all points, from 0"),
        number("ms", "ms", "time of the operation"),
        MODEL,
        WEIGHTS,
        DEVICE,
        DTYPE,
        EVIDENCE,
    ),
    key=("context", "action", "start_layer", "start_token", "rank", "repeat"),
)
