"""Tables of what a prune takes away: mass or direction of attention's output (S-1.6)."""

from ember.records import schema as s

BUDGET = (
    s.integer("peak", "tokens", "the most tokens that a query sees under lazy pruning"),
    s.integer("compression_interval", "tokens", "that a prune drops (R)"),
)

CAUSE_RUNS = s.Schema(
    "streaming_cause_runs",
    "Losses after prunes, attention's output repaired",
    (
        s.text("repair", "what attention's output is made of"),
        s.integer("stream", "", "number of the stream"),
        *BUDGET,
        s.Column("nll", "list[float]", "nats", "by step since the prune, mean over its prunes"),
        s.integer("prunes", "", "of the stream"),
        *s.MEASURED_ON,
    ),
    key=("repair", "stream"),
)

PARTS = (
    s.number("mass", "fraction", "attention mass that the dropped tokens would have"),
    s.number("norm_ratio", "", "norm of the output over kept tokens / over all"),
    s.number("cosine", "", "of the two outputs, head by head"),
    s.number("across", "fraction", "of the squared error: across the output, not along it"),
)

CAUSE_PARTS = s.Schema(
    "streaming_cause_parts",
    "Attention's output after prunes, with and without what was dropped",
    (
        s.integer("layer", "", "layer, from 0"),
        s.integer("stream", "", "number of the stream"),
        *BUDGET,
        *PARTS,
        *s.MEASURED_ON,
    ),
    key=("layer", "stream"),
)

STREAMING_CAUSE = s.Schema(
    "streaming_cause",
    "Which part of attention's output a prune's loss comes from",
    (
        s.text("repair", "what is repaired of attention's output in the period after a prune"),
        s.text("output", "the output then"),
        *BUDGET,
        s.integer("streams", "streams", "that were measured"),
        s.integer("prunes", "", "of all streams"),
        s.number("nll", "nats/token", "mean loss of the period"),
        *s.estimate("saved", "nats/token", "loss without a repair minus this, paired by stream"),
        *s.estimate(
            "removed",
            "fraction",
            "of what repairing all saves; null where that is nothing",
            kind=s.maybe,
        ),
        s.text("verdict", "what follows"),
        *s.MEASURED_ON,
        *s.OUTCOME,
    ),
    key=("repair",),
)

STREAMING_CAUSE_LAYERS = s.Schema(
    "streaming_cause_layers",
    "What a prune takes from each layer's attention",
    (
        s.integer("layer", "", "layer, from 0"),
        *BUDGET,
        s.integer("streams", "streams", "that were measured"),
        *(column for part in PARTS for column in s.estimate(part.name, part.unit, part.meaning)),
        *s.MEASURED_ON,
    ),
    key=("layer",),
)
