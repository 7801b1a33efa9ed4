"""Table of prefills restarted at a layer and of corrections of stale KV, one row per repeat."""

from ember.records.schema import EVIDENCE, WEIGHTS, Column, Schema

RESTART_SWEEP = Schema(
    "restart_sweep",
    "Time to bring a prompt's KV cache up to date: part of the prefill, or the low-rank correction",
    (
        Column("context", "int", "tokens", "prompt length"),
        Column("num_layers", "int", "layers", "layers of the model"),
        Column(
            "action",
            "str",
            "",
            "recompute: run tokens from start_token on through the layers from start_layer up, to "
            "logits; correct: correct the KV of the layers from start_layer up in place",
            values=("recompute", "correct"),
        ),
        Column("start_layer", "int", "", "first layer that runs; num_layers: the head alone"),
        Column("start_token", "int", "", "first token that runs; 0 for a correction"),
        Column(
            "rank",
            "int",
            "",
            "rank of the correction, or of the factors that a recompute keeps for one; 0: none",
        ),
        Column("repeat", "int", "", "recorded pass over all points, from 0"),
        Column("ms", "float", "ms", "time of the operation"),
        Column("model", "str", "", "name of the model"),
        WEIGHTS,
        Column("device", "str", "", "where it ran"),
        Column("dtype", "str", "", "number format of weights and cache"),
        EVIDENCE,
    ),
    key=("context", "action", "start_layer", "start_token", "rank", "repeat"),
)
