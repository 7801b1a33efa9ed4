"""Tables of prefills by plan, through the engine, one row per repeat, and of where KV can lie."""

from ember.records import schema as s

FILL = (
    s.integer("start_layer", "", "first layer that runs; num_layers: the head alone"),
    s.integer("stop_layer", "", "first layer above those that run"),
    s.integer("start_token", "", "first token that runs"),
    s.integer("prefix", "tokens", "of them taken from another prompt of the round"),
    s.flag("correct", "whether stale KV gets the low-rank correction first"),
    s.integer("corrected_from", "", "first corrected layer; 0 without a correction"),
    s.integer("rank", "", "of the correction, or of factors kept for one; 0: none"),
    s.integer("boundary", "", "layer whose entering hidden states are kept; 0: none"),
)

RESTART_SWEEP = s.Schema(
    "restart_sweep",
    "Time to bring a prompt's KV up to date, by plan, through the engine's own path",
    (
        s.integer("context", "tokens", "prompt length"),
        s.integer("num_layers", "layers", "layers of the model"),
        *FILL,
        s.integer("repeat", "", "recorded round over all plans, from 0"),
        s.integer("place", "", "in the round's order, which is drawn anew for each"),
        s.number("prefill_ms", "ms", "bringing the KV up to date, copies included, and the rest"),
        s.number("correction_ms", "ms", "of it, the low-rank correction"),
        s.flag("logits", "whether it gives logits; else the last token is the rows' first step"),
        s.integer("kept_kv_bytes", "bytes", "KV that stays with the prompt"),
        s.integer("kept_hidden_bytes", "bytes", "hidden states that stay with it"),
        s.integer("kept_factor_bytes", "bytes", "low-rank factors that stay with it"),
        s.integer("kept_raw_key_bytes", "bytes", "keys before the norm that stay with it"),
        *s.MEASURED_ON,
    ),
    key=("context", *(column.name for column in FILL), "repeat"),
)

RESTART_STORE = s.Schema(
    "restart_store",
    "Where kept KV can lie, and how fast it moves between device and host",
    (
        s.integer("repeat", "", "recorded copy, from 0"),
        s.maybe("to_host_gb_s", "GB/s", "from the device to pinned memory; null on a CPU"),
        s.maybe("to_device_gb_s", "GB/s", "back; null on a CPU"),
        s.integer("device_bytes", "bytes", "memory of the device"),
        s.integer("host_bytes", "bytes", "memory of the host"),
        *s.MEASURED_ON,
    ),
    key=("repeat",),
)
