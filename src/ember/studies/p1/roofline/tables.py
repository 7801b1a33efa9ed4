"""Tables of decoding against the read bandwidth: whole steps, and the kernels they consist of."""

from ember.records.schema import EVIDENCE, REASON, STATUS, WEIGHTS, Column, Schema

_MACHINE = (
    Column("read_gb_s", "float", "GB/s", "read bandwidth of the device, measured in the same run"),
    Column("device", "str", "", "where it ran"),
    Column("device_name", "str", "", "name of the device"),
    Column("dtype", "str", "", "number format"),
    Column("model", "str", "", "name of the model"),
    WEIGHTS,
    EVIDENCE,
)
_WHAT = (
    Column(
        "operators",
        "str",
        "",
        "kernels: Triton's on CUDA, compiled code on the CPU; plain: the decoder itself, by torch "
        "operators",
        values=("kernels", "plain"),
    ),
    Column("context", "int", "tokens", "prompt length"),
    Column("rows", "int", "", "candidates of the one prompt, the batch of a step"),
)

DECODE_ROOFLINE = Schema(
    "decode_roofline",
    "Generation of candidates of one prompt: speed, and the share of the read bandwidth it reaches",
    (
        *_WHAT,
        Column("generated_tokens", "int", "tokens", "of each candidate"),
        Column("sampling", "str", "", "greedy, or temperature=… and cuts"),
        Column("repeat", "int", "", "recorded run"),
        Column("prefill_ms", "float", "ms", "prompt to its logits, once for all candidates"),
        Column("step_ms", "float", "ms", "one step of decoding, mean over the run"),
        Column("sampling_ms", "float", "ms", "choosing one step's tokens, mean over the run"),
        Column("total_ms", "float", "ms", "from the call to the completions, another run"),
        Column("decode_tokens_per_s", "float", "tokens/s", "rows / (step_ms + sampling_ms)"),
        Column("total_tokens_per_s", "float", "tokens/s", "rows x generated_tokens / total_ms"),
        Column("weight_bytes", "int", "bytes", "weights that a step reads"),
        Column("kv_bytes", "int", "bytes", "KV that a step reads at least: the prompt's once"),
        Column("limit_ms", "float", "ms", "weight_bytes + kv_bytes at read_gb_s"),
        Column("share", "float", "fraction", "limit_ms / (step_ms + sampling_ms)"),
        *_MACHINE,
    ),
    key=("operators", "context", "rows", "sampling", "repeat"),
)

ROOFLINE = Schema(
    "roofline",
    "Decoding against the memory's limit, by batch size: medians over the repeats",
    (
        *_WHAT,
        Column("generated_tokens", "int", "tokens", "of each candidate"),
        Column("sampling", "str", "", "greedy, or temperature=… and cuts"),
        Column("n", "int", "", "recorded runs"),
        Column("step_ms", "float", "ms", "one step of decoding"),
        Column("sampling_ms", "float", "ms", "choosing one step's tokens"),
        Column("limit_ms", "float", "ms", "weights and KV of a step at read_gb_s"),
        Column("share", "float", "fraction", "limit_ms / (step_ms + sampling_ms)"),
        Column("share_p10", "float", "fraction", "10th percentile of the share"),
        Column("share_p90", "float", "fraction", "90th percentile of the share"),
        Column("decode_tokens_per_s", "float", "tokens/s", "rows / (step_ms + sampling_ms)"),
        Column("decode_tokens_per_s_std", "float", "tokens/s", "over the runs", nullable=True),
        Column("limit_tokens_per_s", "float", "tokens/s", "rows / limit_ms"),
        Column("total_tokens_per_s", "float", "tokens/s", "with prefill and everything else"),
        Column("speedup", "float", "", "decode_tokens_per_s over that of plain operators"),
        *_MACHINE,
    ),
    key=("operators", "context", "rows", "sampling"),
)

DECODE_KERNELS = Schema(
    "decode_kernels",
    "Time of each kind of kernel in one decoding step",
    (
        *_WHAT,
        Column(
            "kernel",
            "str",
            "",
            "part of a layer, head, embed; or the operator's kernel; step where skipped",
        ),
        Column(
            "method",
            "str",
            "",
            "alone: a graph of this part of all layers and no other, by events; "
            "profiler: durations of a whole step",
            nullable=True,
            values=("alone", "profiler"),
        ),
        Column("launches", "int", "", "in one step", nullable=True),
        Column("us", "float", "us", "of one launch", nullable=True),
        Column("step_us", "float", "us", "of all launches in one step", nullable=True),
        Column("bytes", "int", "bytes", "weights or KV that one step reads in it", nullable=True),
        Column("share", "float", "fraction", "bytes at read_gb_s / step_us", nullable=True),
        *_MACHINE,
        STATUS,
        REASON,
    ),
    key=("operators", "context", "rows", "kernel"),
)

PREFILL_TIMES = Schema(
    "prefill_times",
    "Prefills of one prompt back to back, by the decoder's operators and with kernels in between",
    (
        Column(
            "operators",
            "str",
            "",
            "kernels: packed matrices and Triton's kernels; plain: the decoder itself",
            values=("kernels", "plain"),
        ),
        Column("context", "int", "tokens", "prompt length"),
        Column("repeat", "int", "", "recorded run"),
        Column("prefill_ms", "float", "ms", "prompt to its logits"),
        *_MACHINE,
    ),
    key=("operators", "context", "repeat"),
)
