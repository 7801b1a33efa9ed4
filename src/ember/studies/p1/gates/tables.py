"""Gates and the model's snapshot: what must hold before anything is measured (P1-0)."""

from ember.records.schema import EVIDENCE, STATUS, WEIGHTS, Column, Schema

GATES = Schema(
    "gates",
    "Hard gates: nothing is measured before they hold",
    (
        Column("gate", "str", "", "what is checked"),
        STATUS,
        Column("passed", "bool", "", "whether the gate holds; a skipped gate holds by its reason"),
        Column("detail", "str", "", "what was found"),
        EVIDENCE,
    ),
    key=("gate",),
)

MODEL_SNAPSHOT = Schema(
    "model_snapshot",
    "The main model, file by file",
    (
        Column("model", "str", "", "name in the configuration"),
        Column("file", "str", "", "file below the model's directory"),
        Column("bytes", "int", "B", "size of the file"),
        Column("sha256", "str", "", "hash of its content"),
        Column("parameters", "int", "", "parameters of the whole model"),
        Column("revision", "str", "", "revision or content hash of the snapshot"),
        WEIGHTS,
        EVIDENCE,
    ),
    key=("model", "file"),
)
