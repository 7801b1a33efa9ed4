"""Table of faults planted in packed layers, and what finds them (L-4)."""

from ember.records import schema as s

LOWBIT_DEBUG = s.Schema(
    "lowbit_debug",
    "Faults planted in packed layers, what each tool says, and whether that is right (L-4)",
    (
        s.text(
            "fault",
            "none; integers: the bits of E4M3 scales of one layer are taken for integers; "
            "integers_all: of every layer",
            values=("none", "integers", "integers_all"),
        ),
        s.text(
            "tool",
            "layers: every layer beside the reference on the same input; scales: one layer on "
            "fixed input and weight; first_token: logits beside the reference's; generation: the "
            "same token again and again",
            values=("layers", "scales", "first_token", "generation"),
        ),
        s.flag("found", "whether the tool says that something is wrong"),
        s.flag("right", "whether that is so: found where a fault is planted, nothing elsewhere"),
        s.maybe("worst", "", "largest relative difference, or nats from the reference"),
        s.text("said", "what it names"),
        *s.MACHINE,
    ),
    key=("fault", "tool"),
)
