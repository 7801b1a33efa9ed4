"""Tables of the sink gate (S-0)."""

from ember.records import schema as s

SINK_MASS = s.Schema(
    "sink_mass",
    "Attention mass on the first token",
    (
        s.integer("layer", "", "layer, from 0"),
        s.number("mass", "fraction", "mean over heads, streams and queries"),
        s.number("head_max", "fraction", "of the head with most"),
        s.integer("queries", "", "queries of each stream and head"),
        *s.MEASURED_ON,
    ),
    key=("layer",),
)

SINK_GAP = s.Schema(
    "sink_gap",
    "Streams with and without a sink at equal peak",
    (
        s.text("corpus", "role of the corpus", values=("long", "short")),
        s.integer("stream", "", "number of the stream"),
        s.integer("peak", "tokens", "W"),
        s.number("without_nll", "nats/token", "0 + W: a window alone"),
        s.number("with_nll", "nats/token", "1 + (W - 1): the start token and a window"),
        *s.MEASURED_ON,
    ),
    key=("corpus", "stream"),
)

STREAMING_GATE = s.Schema(
    "streaming_gate",
    "Whether the model has attention sinks (S-0)",
    (
        s.text("corpus", "role of the corpus", values=("long", "short")),
        s.integer("peak", "tokens", "W of 0 + W against 1 + (W - 1)"),
        s.integer("streams", "streams", "that were measured"),
        *s.estimate("gap", "nats/token", "what the missing sink costs, paired by stream"),
        s.number("max_mass", "fraction", "attention mass on position 0 in the layer with most"),
        s.number("min_mass", "fraction", "what some layer must reach"),
        s.Column("mass_by_layer", "list[float]", "fraction", "by layer, from 0"),
        s.flag("passes", "whether both hold: mass reached, gap above zero"),
        s.text("reason", "what does not hold", nullable=True),
        *s.MEASURED_ON,
    ),
    key=("corpus",),
)
