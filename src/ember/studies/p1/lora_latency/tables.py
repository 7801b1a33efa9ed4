"""Tables of switching adapters: latency and exactness (P1-3.3)."""

from ember.records.schema import (
    DEVICE,
    DTYPE,
    EVIDENCE,
    MODEL,
    OUTCOME,
    WEIGHTS,
    Schema,
    flag,
    integer,
    maybe,
    number,
    spread,
    text,
)

_MACHINE = (DTYPE, MODEL, WEIGHTS, DEVICE, EVIDENCE)
_WHO = (
    text("implementation", "ember or peft", values=("ember", "peft")),
    text("keep", "ember's copy of the base: device, host or none; none for PEFT"),
    text(
        "operation",
        "apply: base to adapter; replace: adapter to adapter; rollback: adapter to base; "
        "reload: read another from a folder and replace",
        values=("apply", "replace", "rollback", "reload"),
    ),
    text(
        "phase",
        "cold: the first of its kind, once (ember's first keep: the first of the "
        "process); steady: after warm-up",
        values=("cold", "steady"),
    ),
)


_SIZE = (
    integer("matrices", "", "matrices that the adapter changes"),
    integer("passes", "", "matrices passed over: twice as many for rollback and apply"),
    integer("rank", "", "rank of the adapters"),
    integer("bytes", "bytes", "adapted weights, read once and written once"),
    number("copy_gb_s", "GB/s", "copy bandwidth of the device, in the same run"),
    number("limit_ms", "ms", "bytes at copy_gb_s"),
)


LORA_LATENCY = Schema(
    "lora_latency",
    "Time of each switch of adapters",
    (
        *_WHO,
        integer("repeat", "", "recorded run"),
        maybe("ms", "ms", "from the call until the device is done"),
        *_SIZE,
        *_MACHINE,
        *OUTCOME,
    ),
    key=("implementation", "keep", "operation", "phase", "repeat"),
)


LORA_LATENCY_SUMMARY = Schema(
    "lora_latency_summary",
    "Time of switching adapters, against the memory's limit and PEFT",
    (
        *_WHO,
        integer("n", "", "recorded runs"),
        *spread("ms", "ms", "time of a switch", ("median", "p10", "p90", "cv"), maybe),
        maybe("ratio_to_limit", "", "ms_median / limit_ms"),
        maybe("speedup_over_peft", "", "PEFT's median, same operation and phase / this one's"),
        *_SIZE,
        *_MACHINE,
        *OUTCOME,
    ),
    key=("implementation", "keep", "operation", "phase"),
)


LORA_EXACT = Schema(
    "lora_exact",
    "Weights after many swaps and an unload, against those before",
    (
        *_WHO[:2],
        integer("swaps", "", "switches of adapters before the unload"),
        flag("exact", "whether all adapted weights are the base's, bit for bit"),
        number("max_abs_diff", "", "largest difference to the base"),
        integer("kept_bytes", "bytes", "memory that the copy of the base takes"),
        integer("adapted_bytes", "bytes", "the adapted weights themselves"),
        integer("model_bytes", "bytes", "all weights of the model"),
        *_MACHINE,
    ),
    key=("implementation", "keep"),
)
