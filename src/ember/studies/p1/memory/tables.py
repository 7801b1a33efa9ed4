"""Table of what a model needs in memory, predicted and measured."""

from ember.records.schema import EVIDENCE, MODEL, OUTCOME, WEIGHTS, Schema, integer, maybe, text

MEMORY_BUDGET = Schema(
    "memory_budget",
    "Memory of a model by part: closed form and measurement (P1-1.5)",
    (
        text(
            "part",
            "weights; KV of one token and of the batch; activations of its prefill at "
            "most; gradients and AdamW's state of all parameters",
        ),
        integer("context", "tokens", "prompt length"),
        integer("batch", "sequences", "prompts at once"),
        integer("predicted_bytes", "bytes", "by the formula"),
        integer("measured_bytes", "bytes", "as found by the method", nullable=True),
        maybe("ratio", "", "measured / predicted"),
        text("formula", "what the prediction multiplies"),
        text(
            "method",
            "allocator: torch's on CUDA, in blocks of 512 bytes; live tensors: tensors "
            "alive at once, without libraries' workspace",
            values=("allocator", "live tensors"),
        ),
        text("device", "where it was measured"),
        text("dtype", "number format of weights, KV, gradients and moments"),
        MODEL,
        WEIGHTS,
        EVIDENCE,
        *OUTCOME,
    ),
    key=("part",),
)
