"""Tables of faults planted in packed layers, and what finds them (L-4)."""

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

PATHS = ("reference", "training", "packed", "unquantised")
LOWBIT_FIRST_TOKEN = s.Schema(
    "lowbit_first_token",
    "The token after a prompt by each path of the same 4-bit weights, faults planted in one (L-4)",
    (
        s.text(
            "planted",
            "none, or the path that takes the bits of E4M3 scales for integers: in all its layers, "
            "or in one",
        ),
        s.text(
            "path",
            "reference: weights dequantised once; training: with gradients, as steps run; packed: "
            "layers that keep 4 bits; unquantised: the weights before, to see what 4 bits cost",
            values=PATHS,
        ),
        s.integer("nan", "", "logits that are NaN"),
        s.integer("infinite", "", "logits that are infinite"),
        s.text("top", "the ten most likely tokens' ids"),
        s.integer("overlap", "", "of these with the reference's ten"),
        s.number("kl", "nats", "from the reference; the largest float where logits are not finite"),
        s.flag("found", "whether it is further from the reference than lowbit.debug.max_kl"),
        s.flag("right", "whether that is so: found where the fault is planted, nowhere else"),
        *s.MACHINE,
    ),
    key=("planted", "path"),
)
