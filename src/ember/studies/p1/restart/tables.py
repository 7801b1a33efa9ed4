"""Table of prefills restarted at a layer and of corrections of stale KV, one row per repeat."""

from ember.records import schema as s

RESTART_SWEEP = s.Schema(
    "restart_sweep",
    "Time to bring a prompt's KV cache up to date: part of the prefill, or the low-rank correction",
    (
        s.integer("context", "tokens", "prompt length"),
        s.integer("num_layers", "layers", "layers of the model"),
        s.text("action", "run layers, or correct their KV", values=("recompute", "correct")),
        s.integer("start_layer", "", "first layer that runs; num_layers: the head alone"),
        s.integer("start_token", "", "first token that runs; 0 for a correction"),
        s.integer("rank", "", "of the correction, or of factors kept for one; 0: none"),
        s.integer("repeat", "", "recorded pass over all points, from 0"),
        s.number("ms", "ms", "time of the operation"),
        s.MODEL,
        s.WEIGHTS,
        s.DEVICE,
        s.DTYPE,
        s.EVIDENCE,
    ),
    key=("context", "action", "start_layer", "start_token", "rank", "repeat"),
)
