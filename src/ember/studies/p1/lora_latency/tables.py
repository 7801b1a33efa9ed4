"""Tables of switching adapters: steady, first in a process, exactness (P1-3.3)."""

from ember.records import schema as s

SWITCHES = ("apply", "replace", "reload", "rollback")  # from the base to the base
FIRST = ("make", "prepare", "apply")  # from a loaded model to its first adapter
PARTS = ("import", "make", "prepare", "compile", "first")

_WHO = (
    s.text("implementation", "ember or peft", values=("ember", "peft")),
    s.text("keep", "ember's copy of the base: device, host or none; none for PEFT"),
)
_OPERATION = s.text(
    "operation",
    "replace: adapter to adapter; reload: read from a folder, and replace",
    values=SWITCHES,
)
_PART = s.text(
    "operation",
    "a switch; of a fresh process also its way there. import: of the modules; make: of the Merger; "
    "prepare: an adapter read from a folder, checked, brought to the device; first: make, prepare "
    "and apply; compile: what Triton needed meanwhile by its own account, in part beside them",
    values=(*PARTS, *SWITCHES),
)
_DISK_CACHE = s.text(
    "disk_cache",
    "Triton's: cold in a folder of its own, warm in that of the process before; none: no kernels",
    values=("warm", "cold", "none"),
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
    "Time of each switch of adapters, implementations in turns",
    (
        *_WHO,
        _OPERATION,
        s.integer("repeat", "", "recorded round"),
        s.integer("place", "", "place of the implementation in that round's order, from 0"),
        s.maybe("ms", "ms", "from the call until the device is done"),
        *_SIZE,
        *s.ADAPTED_ON,
        *s.OUTCOME,
    ),
    key=("implementation", "keep", "operation", "repeat"),
)

LORA_FIRST = s.Schema(
    "lora_first",
    "The first switches of fresh processes, by part",
    (
        *_WHO,
        _PART,
        _DISK_CACHE,
        s.integer("process", "", "number of the process"),
        s.maybe("ms", "ms", "from the call until the device is done"),
        *s.ADAPTED_ON,
        *s.OUTCOME,
    ),
    key=("implementation", "keep", "operation", "disk_cache", "process"),
)

LORA_LATENCY_SUMMARY = s.Schema(
    "lora_latency_summary",
    "Time of switching adapters, against the memory's limit and PEFT",
    (
        *_WHO,
        _PART,
        s.text("phase", "first: of a fresh process", values=("first", "steady")),
        _DISK_CACHE,
        s.integer("n", "", "recorded rounds, or processes"),
        *s.spread("ms", "ms", "time", s.SPREAD, s.maybe),
        s.maybe("ratio_to_limit", "", "ms_median / limit_ms, of a steady switch"),
        s.maybe("speedup_over_peft", "", "PEFT's time / this one's, median over rounds"),
        *_SIZE,
        *s.ADAPTED_ON,
        *s.OUTCOME,
    ),
    key=("implementation", "keep", "operation", "phase", "disk_cache"),
)

LORA_EXACT = s.Schema(
    "lora_exact",
    "Weights after many swaps and an unload, against those before",
    (
        *_WHO,
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
