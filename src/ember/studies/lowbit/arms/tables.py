"""Tables of ways of updating packed weights (L-6.2)."""

from ember.records import schema as s

_VARIANT = (
    s.text(
        "arm",
        "master_float32, master_bfloat16: a copy takes the updates; stochastic, nearest: none, and "
        "how it rounds; feedback: none, and what rounding lost goes into the momentum (ECO)",
    ),
    s.text("states", "number format of the momentum; the second moment is factored but in float32"),
)

ARM_RUNS = s.Schema(
    "lowbit_arm_runs",
    "Training of the same model's packed weights, by arm and seed",
    (
        *_VARIANT,
        s.integer("seed", "", "of data order and rounding"),
        s.integer("step", "", "steps done; 0: the quantised model as it was"),
        s.maybe("train_loss", "nats/token", "mean since the row before"),
        s.number("val_loss", "nats/token", "on held-out tokens"),
        s.maybe("changed", "fraction", "of codes that a step changed, mean since the row before"),
        s.number("weight_bytes", "B/weight", "packed weights and master copy"),
        s.number("state_bytes", "B/weight", "optimizer states"),
        s.integer("val_tokens", "tokens", "held-out tokens"),
        *s.MACHINE,
    ),
    key=("arm", "states", "seed", "step"),
)

DECAY_RUNS = s.Schema(
    "lowbit_decay_runs",
    "Weight decay of one packed layer by itself, without any gradient, by arm and seed",
    (
        *_VARIANT,
        s.integer("seed", "", "of rounding"),
        s.integer("steps", "", "steps of decay"),
        s.number("rate", "fraction", "of a weight that a step is to take"),
        s.number("wanted", "fraction", "of the weights, taken by all steps of exact numbers"),
        s.number("decayed", "fraction", "by which the 4-bit weights shrink along what they were"),
        s.maybe("master_decayed", "fraction", "by which the master copy does"),
        s.number("changed", "fraction", "of codes that differ in the end"),
        *s.MACHINE,
    ),
    key=("arm", "states", "seed"),
)

LOWBIT_ARMS = s.Schema(
    "lowbit_arms",
    "What each way of updating packed weights learns, against a float32 master copy (L-6.2)",
    (
        *_VARIANT,
        s.integer("n", "", "seeds"),
        s.integer("steps", "", "optimizer steps"),
        s.number("weight_bytes", "B/weight", "packed weights and master copy"),
        s.number("state_bytes", "B/weight", "optimizer states"),
        s.number("changed", "fraction", "of codes that a step changes, mean"),
        s.number("learned", "nats/token", "fall of the held-out loss"),
        *s.spread("val_loss", "nats/token", "held-out loss at the end", ("mean", "min", "max")),
        *s.estimate(
            "above", "nats/token", "loss above a float32 master's, paired by seed", "seeds", s.maybe
        ),
        s.maybe("above_share", "fraction", "of the float32 master's loss"),
        *s.estimate(
            "decay", "fraction", "of a weight decay by itself that reaches 4-bit weights", "seeds"
        ),
        s.maybe("decay_master", "fraction", "of it that reaches the master copy"),
        s.number("decay_changed", "fraction", "of codes that it changes in the end"),
        s.text("verdict", "whether anything is learned, and whether as well as with the master"),
        *s.MACHINE,
    ),
    key=("arm", "states"),
)
