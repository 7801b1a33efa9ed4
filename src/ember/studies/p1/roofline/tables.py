"""Tables of decoding against the read bandwidth: whole steps, and the kernels they consist of."""

from ember.records import schema as s

_MACHINE = (
    s.number("read_gb_s", "GB/s", "read bandwidth of the device, measured in the same run"),
    *s.MACHINE,
)
_LIMIT = (
    s.text(
        "limit_kind",
        "memory: its bandwidth bounds a step; cache: the last cache holds weights and KV, so that "
        "reading memory bounds nothing and limit and share are null",
        values=("memory", "cache"),
    ),
    s.maybe("limit_ms", "ms", "weight_bytes + kv_bytes of a step at read_gb_s"),
)
_WHAT = (
    s.text("operators", "the engine's, or plain ones of torch", values=("kernels", "plain")),
    s.integer("context", "tokens", "prompt length"),
    s.integer("rows", "", "candidates of the one prompt, the batch of a step"),
)

DECODE_ROOFLINE = s.Schema(
    "decode_roofline",
    "Generation of candidates of one prompt: speed, and the share of the read bandwidth it reaches",
    (
        *_WHAT,
        s.integer("generated_tokens", "tokens", "of each candidate"),
        s.text("sampling", "greedy, or temperature=… and cuts"),
        s.integer("repeat", "", "recorded run"),
        s.flag(
            "first",
            "ran first of the repeat's pair, alternating; null: plain operators not timed here",
            nullable=True,
        ),
        s.number("step_ms", "ms", "one step of decoding, mean over the run"),
        s.number("sampling_ms", "ms", "choosing one step's tokens, mean over the run"),
        s.number("total_ms", "ms", "from the call to the completions, another run"),
        s.number("decode_tokens_per_s", "tokens/s", "rows / (step_ms + sampling_ms)"),
        s.number("total_tokens_per_s", "tokens/s", "rows x generated_tokens / total_ms"),
        s.integer("weight_bytes", "bytes", "weights that a step reads"),
        s.integer("kv_bytes", "bytes", "KV that a step reads at least: the prompt's once"),
        *_LIMIT,
        s.maybe("share", "fraction", "limit_ms / (step_ms + sampling_ms)"),
        *_MACHINE,
    ),
    key=("operators", "context", "rows", "sampling", "repeat"),
)

ROOFLINE = s.Schema(
    "roofline",
    "Decoding against the memory's limit, by batch size: medians over the repeats",
    (
        *_WHAT,
        s.integer("generated_tokens", "tokens", "of each candidate"),
        s.text("sampling", "greedy, or temperature=… and cuts"),
        s.integer("n", "", "recorded runs"),
        s.number("step_ms", "ms", "one step of decoding"),
        s.number("sampling_ms", "ms", "choosing one step's tokens"),
        s.maybe("first_share", "fraction", "of the repeats, in which it ran first of the pair"),
        *_LIMIT,
        *s.spread("share", "fraction", "limit_ms / (step_ms + sampling_ms)", kind=s.maybe),
        *s.spread("decode_tokens_per_s", "tokens/s", "rows / (step_ms + sampling_ms)"),
        s.maybe("limit_tokens_per_s", "tokens/s", "rows / limit_ms"),
        s.number("total_tokens_per_s", "tokens/s", "with prefill and everything else"),
        s.maybe("speedup", "", "decode_tokens_per_s_median over that of plain operators"),
        *_MACHINE,
    ),
    key=("operators", "context", "rows", "sampling"),
)

DECODE_KERNELS = s.Schema(
    "decode_kernels",
    "Time of each kind of kernel in one decoding step",
    (
        *_WHAT,
        s.text("kernel", "part of a layer, head, embed; an operator's kernel; step where skipped"),
        s.text("method", "alone: in its own graph", values=("alone", "profiler"), nullable=True),
        s.integer("launches", "", "in one step", nullable=True),
        s.maybe("us", "us", "of one launch"),
        s.maybe("step_us", "us", "of all launches in one step"),
        s.integer("bytes", "bytes", "weights or KV that one step reads in it", nullable=True),
        s.maybe("share", "fraction", "bytes at read_gb_s / step_us"),
        *_MACHINE,
        *s.OUTCOME,
    ),
    key=("operators", "context", "rows", "kernel"),
)
