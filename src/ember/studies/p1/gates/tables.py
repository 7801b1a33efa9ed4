"""Gates and the model's snapshot: what must hold before anything is measured (P1-0)."""

from ember.records.schema import EVIDENCE, STATUS, WEIGHTS, Schema, flag, integer, text

GATES = Schema(
    "gates",
    "Hard gates: nothing is measured before they hold",
    (
        text("gate", "what is checked"),
        STATUS,
        flag("passed", "whether the gate holds; a skipped gate holds by its reason"),
        text("detail", "what was found"),
        EVIDENCE,
    ),
    key=("gate",),
)

MODEL_SNAPSHOT = Schema(
    "model_snapshot",
    "The main model, file by file",
    (
        text("model", "name in the configuration"),
        text("file", "file below the model's directory"),
        integer("bytes", "B", "size of the file"),
        text("sha256", "hash of its content"),
        integer("parameters", "", "parameters of the whole model"),
        text("revision", "revision or content hash of the snapshot"),
        WEIGHTS,
        EVIDENCE,
    ),
    key=("model", "file"),
)
