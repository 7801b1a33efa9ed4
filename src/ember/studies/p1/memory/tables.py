"""Table of what a model needs in memory, predicted and measured."""

from ember.records.schema import EVIDENCE, REASON, STATUS, WEIGHTS, Column, Schema

MEMORY_BUDGET = Schema(
    "memory_budget",
    "Memory of a model by part: closed form and measurement (P1-1.5)",
    (
        Column(
            "part",
            "str",
            "",
            "weights; KV of one token and of the batch; activations of its prefill at most; "
            "gradients and AdamW's state of all parameters",
        ),
        Column("context", "int", "tokens", "prompt length"),
        Column("batch", "int", "sequences", "prompts at once"),
        Column("predicted_bytes", "int", "bytes", "by the formula"),
        Column("measured_bytes", "int", "bytes", "as found by the method", nullable=True),
        Column("ratio", "float", "", "measured / predicted", nullable=True),
        Column("formula", "str", "", "what the prediction multiplies"),
        Column(
            "method",
            "str",
            "",
            "allocator: torch's on CUDA, in blocks of 512 bytes; live tensors: tensors alive at "
            "once, without libraries' workspace",
            values=("allocator", "live tensors"),
        ),
        Column("device", "str", "", "where it was measured"),
        Column("dtype", "str", "", "number format of weights, KV, gradients and moments"),
        Column("model", "str", "", "name of the model"),
        WEIGHTS,
        EVIDENCE,
        STATUS,
        REASON,
    ),
    key=("part",),
)
