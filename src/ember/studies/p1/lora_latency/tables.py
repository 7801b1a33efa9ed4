"""Tables of switching adapters: latency and exactness (P1-3.3)."""

from ember.records import schema as s

_WHO = (
    s.text("implementation", "ember or peft", values=("ember", "peft")),
    s.text("keep", "ember's copy of the base: device, host or none; none for PEFT"),
    s.text(
        "operation",
        "replace: adapter to adapter; reload: read from a folder, and replace",
        values=("apply", "replace", "rollback", "reload"),
    ),
    s.text("phase", "cold: the first call of its kind", values=("cold", "steady")),
)

_SIZE = (
    s.integer("matrices", "", "matrices that the adapter changes"),
    s.integer("passes", "", "matrices passed over: twice as many for rollback and apply"),
    s.integer("rank", "", "rank of the adapters"),
    s.integer("bytes", "bytes", "adapted weights, read once and written once"),
    s.number("copy_gb_s", "GB/s", "copy bandwidth of the device, in the same run"),
    s.number("limit_ms", "ms", "bytes at copy_gb_s"),
)

LORA_LATENCY = s.Schema(
    "lora_latency",
    "Time of each switch of adapters",
    (
        *_WHO,
        s.integer("repeat", "", "recorded run"),
        s.maybe("ms", "ms", "from the call until the device is done"),
        *_SIZE,
        *s.ADAPTED_ON,
        *s.OUTCOME,
    ),
    key=("implementation", "keep", "operation", "phase", "repeat"),
)

LORA_LATENCY_SUMMARY = s.Schema(
    "lora_latency_summary",
    "Time of switching adapters, against the memory's limit and PEFT",
    (
        *_WHO,
        s.integer("n", "", "recorded runs"),
        *s.spread("ms", "ms", "time of a switch", (*s.SPREAD, "cv"), s.maybe),
        s.maybe("ratio_to_limit", "", "ms_median / limit_ms"),
        s.maybe("speedup_over_peft", "", "PEFT's median, same operation and phase / this one's"),
        *_SIZE,
        *s.ADAPTED_ON,
        *s.OUTCOME,
    ),
    key=("implementation", "keep", "operation", "phase"),
)

LORA_EXACT = s.Schema(
    "lora_exact",
    "Weights after many swaps and an unload, against those before",
    (
        *_WHO[:2],
        s.integer("swaps", "", "switches of adapters before the unload"),
        s.flag("exact", "whether all adapted weights are the base's, bit for bit"),
        s.number("max_abs_diff", "", "largest difference to the base"),
        s.integer("kept_bytes", "bytes", "memory that the copy of the base takes"),
        s.integer("adapted_bytes", "bytes", "the adapted weights themselves"),
        s.integer("model_bytes", "bytes", "all weights of the model"),
        *s.ADAPTED_ON,
    ),
    key=("implementation", "keep"),
)
