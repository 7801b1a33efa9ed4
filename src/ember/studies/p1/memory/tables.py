"""Table of what a model needs in memory, predicted and measured."""

from ember.records import schema as s

MEMORY_BUDGET = s.Schema(
    "memory_budget",
    "Memory of a model by part: closed form and measurement (P1-1.5)",
    (
        s.text("part", "what takes the memory; activations: of the prefill, at most"),
        s.integer("context", "tokens", "prompt length"),
        s.integer("batch", "sequences", "prompts at once"),
        s.integer("predicted_bytes", "bytes", "by the formula"),
        s.integer("measured_bytes", "bytes", "as found by the method", nullable=True),
        s.maybe("ratio", "", "measured / predicted"),
        s.text("formula", "what the prediction multiplies"),
        s.text("method", "on CUDA, and on a CPU", values=("allocator", "live tensors")),
        *s.MEASURED_ON,
        *s.OUTCOME,
    ),
    key=("part",),
)
