"""Tables of points of the channel: by question, and compared with the FP16 channel."""

from ember.records import schema as s

POINT = (
    s.text("point", "what is sent and how, the usual left out"),
    s.text("scheme", "number format (the default of a schedule)"),
    s.text("axis", "which values share a scale"),
    s.flag("symmetric", "whether scales have no offset"),
    s.integer("group", "values", "of a scale, on axis group"),
    s.number("eps", "", "smaller magnitudes are taken for 0"),
    s.text("quantize_target", "what is quantised", values=("source", "base", "both")),
    s.text("mode", "how tokens were chosen; all: none left out"),
    s.number("proportion", "fraction", "of the tokens in scope that are sent"),
    s.text("scope", "tokens that are chosen from"),
    s.integer("min_tokens", "tokens", "sent at least"),
    s.integer("seed", "", "of random choices"),
    s.flag("sparse_fuse", "whether only tokens that were sent are projected"),
    s.text("scatter_fill", "what stands where nothing was sent"),
    s.integer("index_dtype_bytes", "bytes", "of a token's place"),
    s.flag("include_scale_overhead", "whether estimates count scales and places"),
    s.text("schedule", "name of the layer schedule; empty: one scheme for all"),
    s.text("schemes", "its schemes by the receiver's layer"),
)
FAMILY = s.text(
    "family", "the study that measured it", values=("ptq", "length", "layers", "selection")
)

C2C_POINTS = s.Schema(
    "c2c_points",
    "A point of the channel, question by question",
    (
        FAMILY,
        *POINT,
        s.integer("world", "", "seed of world, models and fuser"),
        s.text("split", "development: for choices; test: for results"),
        s.text("stratum", "who knows the answer"),
        s.Column("items", "list[int]", "", "numbers of the questions"),
        s.Column("groups", "list[int]", "", "group of each; questions of one are not independent"),
        s.Column("correct", "list[int]", "", "1 where the answer is right"),
        s.Column("nll", "list[float]", "nats", "of the right answer among the choices"),
        s.flag("limited", "whether a limit cut the evaluation"),
        s.number("tokens", "tokens", "sent of a passage, mean over questions"),
        s.number("passage_tokens", "tokens", "of a passage, mean over questions"),
        s.number("estimated_bytes", "bytes", "from the sharer's shape, mean over questions"),
        s.number("measured_bytes", "bytes", "of the serialised blob, mean over questions"),
        s.number("charged_bytes", "bytes", "that the receiver had to send first, in both"),
        s.number("header_bytes", "bytes", "of the blob but codes, scales and places"),
        s.integer("elements", "values", "of a token's KV in the layers that gates use"),
        s.number("channel_ms", "ms", "choosing and quantising a passage"),
        s.number("fuse_ms", "ms", "projecting and fusing a passage"),
        *s.MEASURED_ON,
    ),
    key=("family", "point", "world", "split", "stratum"),
)

COMPARED = (
    FAMILY,
    *POINT,
    s.text("stratum", "questions that accuracies are of"),
    s.integer("questions", "", "answered, over all worlds"),
    s.integer("seeds", "", "worlds, with models and fuser of their own"),
    s.flag("limited", "whether a limit cut the evaluation"),
    *s.estimate("accuracy", "fraction", "of the questions answered right", "passages"),
    s.maybe("accuracy_min", "fraction", "of the worst world; null of one"),
    s.maybe("accuracy_max", "fraction", "of the best world"),
    *s.estimate("difference", "fraction", "to the FP16 channel on the same questions", "passages"),
    s.number("p", "", "of the paired sign-flip test over passages"),
    s.number("p_holm", "", "corrected for all points of the table and stratum (Holm)"),
    s.number("margin", "fraction", "a lower end above -margin is non-inferior"),
    s.flag("non_inferior", "whether it is"),
    s.number("tokens", "tokens", "sent of a passage"),
    s.number("passage_tokens", "tokens", "of a passage"),
    s.number("estimated_bytes", "bytes", "a question, from the sharer's shape"),
    s.number("measured_bytes", "bytes", "a question: the serialised blob, and what was charged"),
    s.number("header_bytes", "bytes", "of them neither codes, scales nor places"),
    s.number("drift", "fraction", "of estimated from measured bytes"),
    s.number("bytes_share", "fraction", "measured bytes over the FP16 channel's"),
    s.number("effective_bits", "bits", "measured bits for each value of the passage's KV"),
    s.maybe("sent_bits", "bits", "measured bits for each value of the tokens sent"),
    s.number("channel_ms", "ms", "choosing and quantising a passage"),
    s.number("fuse_ms", "ms", "projecting and fusing a passage"),
    *s.MEASURED_ON,
)


def compared(name: str, meaning: str, *more: s.Column) -> s.Schema:
    """A final table of points compared with the FP16 channel."""
    return s.Schema(name, meaning, (*COMPARED, *more), key=("family", "point", "stratum"))
