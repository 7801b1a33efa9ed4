"""Tables of the models trained in the workflow."""

from ember.records.schema import EVIDENCE, WEIGHTS, Schema, integer, maybe, number, text

MODEL_CARD = Schema(
    "model_card",
    "What a trained model is and how it does against its baselines",
    (
        text("metric", "what is counted or measured"),
        number("value", "", "its value"),
        text("unit", "its unit"),
        text(
            "split",
            "part of the corpus it was measured on; all: not on one",
            values=("all", "train", "validation", "test"),
        ),
        maybe("low", "", "lower end of the 95 % interval"),
        maybe("high", "", "upper end of the 95 % interval"),
        text("detail", "how it was measured, and what follows"),
        EVIDENCE,
        WEIGHTS,
    ),
    key=("metric", "split"),
)


TRAINING_LOG = Schema(
    "training_log",
    "Course of a language-model training",
    (
        integer("step", "steps", "optimizer steps done"),
        integer("tokens", "tokens", "tokens trained on so far, repeats counted"),
        number("train_loss", "nats/token", "mean loss since the row before"),
        number("learning_rate", "", "of the last step"),
        maybe("val_bits_per_byte", "bits/B", "on the validation split; null between passes"),
        number("tokens_per_s", "tokens/s", "training speed so far"),
        number("seconds", "s", "training time so far, validation left out"),
        EVIDENCE,
        WEIGHTS,
    ),
    key=("step",),
)
