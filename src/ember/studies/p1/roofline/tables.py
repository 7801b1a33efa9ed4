"""Tables of decoding against the read bandwidth: whole steps, and the kernels they consist of."""

from ember.records.schema import (
    DEVICE,
    DEVICE_NAME,
    EVIDENCE,
    MODEL,
    OUTCOME,
    WEIGHTS,
    Schema,
    integer,
    maybe,
    number,
    text,
)

_MACHINE = (
    number("read_gb_s", "GB/s", "read bandwidth of the device, measured in the same run"),
    DEVICE,
    DEVICE_NAME,
    text("dtype", "number format"),
    MODEL,
    WEIGHTS,
    EVIDENCE,
)
_WHAT = (
    text(
        "operators",
        "kernels: Triton's on CUDA, compiled code on the CPU; plain: torch operators, on "
        "CUDA in one graph",
        values=("kernels", "plain"),
    ),
    integer("context", "tokens", "prompt length"),
    integer("rows", "", "candidates of the one prompt, the batch of a step"),
)

DECODE_ROOFLINE = Schema(
    "decode_roofline",
    "Generation of candidates of one prompt: speed, and the share of the read bandwidth it reaches",
    (
        *_WHAT,
        integer("generated_tokens", "tokens", "of each candidate"),
        text("sampling", "greedy, or temperature=… and cuts"),
        integer("repeat", "", "recorded run"),
        number("prefill_ms", "ms", "prompt to its logits, once for all candidates"),
        number("step_ms", "ms", "one step of decoding, mean over the run"),
        number("sampling_ms", "ms", "choosing one step's tokens, mean over the run"),
        number("total_ms", "ms", "from the call to the completions, another run"),
        number("decode_tokens_per_s", "tokens/s", "rows / (step_ms + sampling_ms)"),
        number("total_tokens_per_s", "tokens/s", "rows x generated_tokens / total_ms"),
        integer("weight_bytes", "bytes", "weights that a step reads"),
        integer("kv_bytes", "bytes", "KV that a step reads at least: the prompt's once"),
        number("limit_ms", "ms", "weight_bytes + kv_bytes at read_gb_s"),
        number("share", "fraction", "limit_ms / (step_ms + sampling_ms)"),
        *_MACHINE,
    ),
    key=("operators", "context", "rows", "sampling", "repeat"),
)

ROOFLINE = Schema(
    "roofline",
    "Decoding against the memory's limit, by batch size: medians over the repeats",
    (
        *_WHAT,
        integer("generated_tokens", "tokens", "of each candidate"),
        text("sampling", "greedy, or temperature=… and cuts"),
        integer("n", "", "recorded runs"),
        number("step_ms", "ms", "one step of decoding"),
        number("sampling_ms", "ms", "choosing one step's tokens"),
        number("limit_ms", "ms", "weights and KV of a step at read_gb_s"),
        number("share", "fraction", "limit_ms / (step_ms + sampling_ms)"),
        number("share_p10", "fraction", "10th percentile of the share"),
        number("share_p90", "fraction", "90th percentile of the share"),
        number("decode_tokens_per_s", "tokens/s", "rows / (step_ms + sampling_ms)"),
        maybe("decode_tokens_per_s_std", "tokens/s", "over the runs"),
        number("limit_tokens_per_s", "tokens/s", "rows / limit_ms"),
        number("total_tokens_per_s", "tokens/s", "with prefill and everything else"),
        number("speedup", "", "decode_tokens_per_s over that of plain operators"),
        *_MACHINE,
    ),
    key=("operators", "context", "rows", "sampling"),
)

DECODE_KERNELS = Schema(
    "decode_kernels",
    "Time of each kind of kernel in one decoding step",
    (
        *_WHAT,
        text("kernel", "part of a layer, head, embed; an operator's kernel; step where skipped"),
        text(
            "method",
            "alone: a graph of this part of all layers and no other, by events; profiler:"
            " durations of a whole step",
            values=("alone", "profiler"),
            nullable=True,
        ),
        integer("launches", "", "in one step", nullable=True),
        maybe("us", "us", "of one launch"),
        maybe("step_us", "us", "of all launches in one step"),
        integer("bytes", "bytes", "weights or KV that one step reads in it", nullable=True),
        maybe("share", "fraction", "bytes at read_gb_s / step_us"),
        *_MACHINE,
        *OUTCOME,
    ),
    key=("operators", "context", "rows", "kernel"),
)

PREFILL_TIMES = Schema(
    "prefill_times",
    "Prefills of one prompt back to back, by the decoder's operators and with kernels in between",
    (
        text(
            "operators",
            "kernels: packed matrices and Triton's kernels; plain: the decoder itself",
            values=("kernels", "plain"),
        ),
        integer("context", "tokens", "prompt length"),
        integer("repeat", "", "recorded run"),
        number("prefill_ms", "ms", "prompt to its logits"),
        *_MACHINE,
    ),
    key=("operators", "context", "repeat"),
)
