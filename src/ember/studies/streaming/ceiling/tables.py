"""Tables of what keeping the cache costs a token (S-5)."""

from ember.records import schema as s

KINDS = ("append_cat", "slice_cat", "roll", "shift", "ring")
_KIND = s.text(
    "kind",
    "append_cat: all is kept, a new tensor each token; slice_cat: sinks, window and token in a "
    "new tensor; roll: Transformers' sliding layer, all rolled in place; shift: what lies after a "
    "drop moves down; ring: the sinks move up",
    values=KINDS,
)
_PERIOD = s.integer("compression_interval", "tokens", "from one prune to the next (R)")
_SHAPE = (
    s.integer("peak", "tokens", "most tokens held; append_cat ends there"),
    s.integer("tokens", "tokens", "tokens of a run"),
    s.integer("kv_bytes", "B/token", "keys and values of a token in all layers"),
)

_MACHINE = (
    s.number("read_gb_s", "GB/s", "read bandwidth of the device, measured in the same run"),
    s.number("copy_gb_s", "GB/s", "of a copy, bytes read and written, measured in the same run"),
    s.integer("weight_bytes", "bytes", "weights that a step of the model reads"),
    s.integer("last_cache", "bytes", "of the device's last cache; null: unknown", nullable=True),
    *s.MACHINE,
)

CEILING_RUNS = s.Schema(
    "streaming_ceiling_runs",
    "Time and copies of the cache alone, without a model around it",
    (
        _KIND,
        _PERIOD,
        *_SHAPE,
        s.integer("repeat", "", "number of the run"),
        s.number("cache_ms", "ms/token", "time of storing a token and of dropping others"),
        s.number("copied_bytes", "B/token", "written besides the token itself"),
        *_MACHINE,
    ),
    key=("kind", "compression_interval", "repeat"),
)

STREAMING_CEILING = s.Schema(
    "streaming_ceiling",
    "What keeping the cache costs a token, by how it is kept (S-5)",
    (
        _KIND,
        _PERIOD,
        *_SHAPE,
        s.integer("n", "", "runs"),
        *s.spread("cache_ms", "ms/token", "time of cache work", ("median", "min", "max")),
        s.number("copied_bytes", "B/token", "written besides the token itself"),
        s.number("copied_tokens", "tokens/token", "the same in tokens of the cache"),
        s.number("gain", "fraction", "time saved against slice_cat at each token"),
        s.text("verdict", "gain beyond noise, or the negative result"),
        s.maybe(
            "floor_ms",
            "ms/token",
            "copied_bytes, read and written, at copy_gb_s; null where the last cache holds the KV",
        ),
        s.maybe("share", "fraction", "floor_ms / cache_ms_median: of the bandwidth measured"),
        s.maybe(
            "token_floor_ms",
            "ms/token",
            "of a whole token of the model: weights, visible KV and copies (read and written) at "
            "read_gb_s; null where the last cache holds weights and KV",
        ),
        *_MACHINE,
    ),
    key=("kind", "compression_interval"),
)
