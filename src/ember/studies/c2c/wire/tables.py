"""Tables of the wire format: blobs and their times, a socket, and latency by bandwidth (C-M11)."""

from ember.records import schema as s

_WHAT = (
    s.text(
        "payload",
        "pair: of the trained pair; published: random values in the shape of the published pair's "
        "sharer; big: random values, far more than caches hold",
        values=("pair", "published", "big"),
    ),
    s.text("scheme", "number format"),
)
_SIZES = (
    s.text("axis", "along which values share a scale"),
    s.integer("layers", "", "of the sharer, that are sent"),
    s.integer("tokens", "tokens", "that are sent"),
    s.integer("source_bytes", "bytes", "the same values in FP16"),
    s.integer("estimated_bytes", "bytes", "codes, scales and indices by shape"),
    s.integer("header_bytes", "bytes", "header and checksum"),
    s.integer("indices_bytes", "bytes", "places of the tokens"),
    s.integer("codes_bytes", "bytes", "packed values"),
    s.integer("scales_bytes", "bytes", "scales and the like"),
    s.integer("blob_bytes", "bytes", "length of the blob"),
)
_TIMES = {
    "quantise_ms": "values to packed codes and scales, on the device",
    "pack_ms": "these to a blob in host memory: gathered, copied, checked, summed",
    "unpack_ms": "blob to codes and scales on the device, everything checked",
    "dequantise_ms": "these to float32 values, on the device",
    "socket_ms": "blob to another process over a local socket, until it says that it has all",
}
_LIMIT = (
    s.number("copy_gb_s", "GB/s", "copy bandwidth of the device, in the same run"),
    s.number("limit_ms", "ms", "FP16 values read and codes and scales written at copy_gb_s"),
    s.text(
        "limit_kind",
        "memory: it bounds quantising; cache: the last cache holds all that moves, so that it "
        "does not, and the share is null",
        values=("memory", "cache"),
    ),
)

_BREAKEVEN = s.maybe(
    "breakeven_mbit_s",
    "Mbit/s",
    "bandwidth from which the trained pair's channel is faster than text; 0: at any; null: at none",
)

WIRE_BLOBS = s.Schema(
    "wire_blobs",
    "Blobs of the channel: bytes by purpose, and the times of making, sending and reading them",
    (
        *_WHAT,
        *_SIZES,
        s.integer("repeat", "", "recorded run"),
        *(s.number(name, "ms", meaning) for name, meaning in _TIMES.items()),
        *_LIMIT,
        *s.MACHINE,
    ),
    key=("payload", "scheme", "repeat"),
)

WIRE_STAGES = s.Schema(
    "wire_stages",
    "What text and channel need beside the transfer, of the trained pair, one message",
    (
        s.text(
            "stage",
            "generate: the sharer writes the text; read: the receiver reads it; fuse: the fuser "
            "adds the sharer's KV; ping: one byte to another process and back",
            values=("generate", "read", "fuse", "ping"),
        ),
        s.integer("repeat", "", "recorded run"),
        s.number("ms", "ms", "its time"),
        s.integer("text_tokens", "tokens", "of the text"),
        s.integer("text_bytes", "bytes", "of the text"),
        *s.MACHINE,
    ),
    key=("stage", "repeat"),
)

C2C_M11 = s.Schema(
    "c2c_m11",
    "Wire format: measured bytes by purpose, times beside the memory's limit, break-even with text",
    (
        *_WHAT,
        *_SIZES,
        s.number("drift", "fraction", "blob_bytes over estimated_bytes, less 1"),
        s.integer("n", "", "recorded runs"),
        *(
            column
            for name, meaning in _TIMES.items()
            for column in s.spread(name, "ms", meaning, ("median", "min", "max"))
        ),
        *_LIMIT,
        s.maybe("share", "fraction", "limit_ms / quantise_ms_median"),
        s.number("socket_mb_s", "MB/s", "blob_bytes / socket_ms_median, 1e6 bytes"),
        _BREAKEVEN,
        *s.MACHINE,
    ),
    key=("payload", "scheme"),
)

WIRE_LATENCY = s.Schema(
    "wire_latency",
    "Time of one message by bandwidth: measured stages plus bytes over bandwidth",
    (
        s.text("medium", "text, or the number format that KV is sent in"),
        s.number("bandwidth_mbit_s", "Mbit/s", "of the link, 1e6 bits"),
        s.integer("message_bytes", "bytes", "of text or blob"),
        s.number("before_ms", "ms", "until all is ready to go: generate, or quantise and pack"),
        s.number("transfer_ms", "ms", "message_bytes over bandwidth"),
        s.number("after_ms", "ms", "until the receiver goes on: read, or unpack … fuse"),
        s.number("total_ms", "ms", "the sum; prefills that both media need are left out"),
        s.integer("n", "", "recorded runs of each stage"),
        _BREAKEVEN,
        *s.MACHINE,
    ),
    key=("medium", "bandwidth_mbit_s"),
)
