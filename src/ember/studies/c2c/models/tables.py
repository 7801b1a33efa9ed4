"""The table of what training did."""

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
