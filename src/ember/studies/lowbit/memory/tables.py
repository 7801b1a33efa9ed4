"""Table of the memory of a training step (L-6.4)."""

from ember.records import schema as s

PHASES = ("load", "forward", "backward")
KINDS = ("packed", "master", "states", "dense")

LOWBIT_MEMORY = s.Schema(
    "lowbit_memory",
    "Memory of one training step by phase: its peak, and what holds it between the phases (L-6.4)",
    (
        s.text("variant", "what trains and how; adamw: all parameters, dense, by torch's AdamW"),
        s.text("phase", "backward: with the update", values=PHASES),
        s.integer("parameters", "", "that train"),
        s.integer("tokens", "tokens", "of the one sequence"),
        s.integer("peak_bytes", "B", "the most that tensors took in the phase"),
        s.maybe("driver_bytes", "B", "memory that the driver calls used after it, others' too"),
        *(
            s.integer(f"{kind}_bytes", "B", meaning)
            for kind, meaning in (
                ("packed", "codes and scales"),
                ("master", "copies that take updates"),
                ("states", "optimizer states"),
                ("dense", "other parameters and buffers; of adamw all"),
            )
        ),
        s.integer("rest_bytes", "B", "of the peak: activations, gradients, temporaries"),
        s.number("bytes_per_parameter", "B", "peak over the parameters that train"),
        s.maybe("loss", "nats/token", "before the update"),
        s.text("method", "on CUDA, and on a CPU", values=("allocator", "live tensors")),
        *s.MACHINE,
        *s.OUTCOME,
    ),
    key=("variant", "phase"),
)
