"""Tables of texts and of the models trained on them."""

from ember.records.schema import EVIDENCE, WEIGHTS, Column, Schema

SPLIT = Column("split", "str", values=("train", "validation", "test"), meaning="part of the corpus")

CORPUS = Schema(
    "corpus",
    "Documents of a corpus, split so that no held-out text is trained on",
    (
        SPLIT,
        Column("doc", "str", meaning="id of the document, the same on every machine"),
        Column("source", "str", values=("stdlib", "pydoc", "files", "hub"), meaning="its origin"),
        Column("bytes", "int", "B", "length of the text as UTF-8"),
        Column("sha256", "str", meaning="hash of the text as UTF-8"),
        Column("text", "str", meaning="the text"),
    ),
    key=("doc",),
)

MODEL_CARD = Schema(
    "model_card",
    "What a trained model is and how it does against its baselines",
    (
        Column("metric", "str", meaning="what is counted or measured"),
        Column("value", "float", meaning="its value"),
        Column("unit", "str", meaning="its unit"),
        Column(
            "split",
            "str",
            meaning="part of the corpus it was measured on; all: not on one",
            values=("all", "train", "validation", "test"),
        ),
        Column("low", "float", meaning="lower end of the 95 % interval", nullable=True),
        Column("high", "float", meaning="upper end of the 95 % interval", nullable=True),
        Column("detail", "str", meaning="how it was measured, and what follows"),
        EVIDENCE,
        WEIGHTS,
    ),
    key=("metric", "split"),
)

TRAINING_LOG = Schema(
    "training_log",
    "Course of a language-model training",
    (
        Column("step", "int", "steps", "optimizer steps done"),
        Column("tokens", "int", "tokens", "tokens trained on so far, repeats counted"),
        Column("train_loss", "float", "nats/token", "mean loss since the row before"),
        Column("learning_rate", "float", meaning="of the last step"),
        Column(
            "val_bits_per_byte",
            "float",
            "bits/B",
            "on the validation split; null between validation passes",
            nullable=True,
        ),
        Column("tokens_per_s", "float", "tokens/s", "training speed so far"),
        Column("seconds", "float", "s", "training time so far, validation left out"),
        EVIDENCE,
        WEIGHTS,
    ),
    key=("step",),
)
