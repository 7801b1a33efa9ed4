"""Tables of the trained pair: what training did, and the questions that points are measured on."""

from ember.records import schema as s

C2C_TRAINING = s.Schema(
    "c2c_training",
    "Training of models and fusers in the generated world",
    (
        s.integer("seed", "", "seed of world and model"),
        s.text("model", "what is trained"),
        s.integer("step", "steps", "optimizer steps so far"),
        s.number("seconds", "s", "of steps so far, over all resumed parts"),
        s.number("loss", "nats", "cross-entropy of answers since the row before"),
        s.number("right", "fraction", "training questions answered right since then"),
        s.maybe("easy", "fraction", "steps of the curriculum's first part since then"),
        s.maybe("distance", "", "to the warm start's target, relative to its variance"),
        s.maybe("open_gates", "fraction", "gates whose logit is above 0"),
        s.WEIGHTS,
        s.EVIDENCE,
    ),
    key=("seed", "model", "step"),
)

C2C_ITEMS = s.Schema(
    "c2c_items",
    "Questions: what each model reads, what may be answered, what is right",
    (
        s.text("split", "development: for choices; test: for results"),
        s.integer("item", "", "number of the question in its split"),
        s.text("stratum", "who knows the answer"),
        s.Column("sharer", "list[int]", "tokens", "what the sharer reads"),
        s.Column("receiver", "list[int]", "tokens", "the receiver's prompt, section by section"),
        s.Column("lengths", "list[int]", "tokens", "of its sections"),
        s.Column("fused", "list[int]", "", "1 for sections that take KV"),
        s.Column("index", "list[int]", "", "sharer's token of each of the receiver's, or -1"),
        s.Column("instruction", "list[int]", "", "1 for tokens of the instruction"),
        s.Column("choices", "list[int]", "tokens", "possible answers"),
        s.integer("right", "", "the right one"),
    ),
    key=("split", "item"),
)
