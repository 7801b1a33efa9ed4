"""Tables of the models trained in the workflow."""

from ember.records import schema as s

MODEL_CARD = s.Schema(
    "model_card",
    "What a trained model is and how it does against its baselines",
    (
        s.text("metric", "what is counted or measured"),
        s.number("value", "", "its value"),
        s.text("unit", "its unit"),
        s.text(
            "split",
            "part of the corpus it was measured on; all: not on one",
            values=("all", "train", "validation", "test"),
        ),
        s.maybe("low", "", "lower end of the 95 % interval"),
        s.maybe("high", "", "upper end of the 95 % interval"),
        s.text("detail", "how it was measured, and what follows"),
        s.EVIDENCE,
        s.WEIGHTS,
    ),
    key=("metric", "split"),
)

TRAINING_LOG = s.Schema(
    "training_log",
    "Course of a language-model training",
    (
        s.integer("step", "steps", "optimizer steps done"),
        s.integer("tokens", "tokens", "tokens trained on so far, repeats counted"),
        s.number("train_loss", "nats/token", "mean loss since the row before"),
        s.number("learning_rate", "", "of the last step"),
        s.maybe("val_bits_per_byte", "bits/B", "on the validation split; null between passes"),
        s.number("tokens_per_s", "tokens/s", "training speed so far"),
        s.number("seconds", "s", "training time so far, validation left out"),
        s.EVIDENCE,
        s.WEIGHTS,
    ),
    key=("step",),
)
