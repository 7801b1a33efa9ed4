"""Gates and the model's snapshot: what must hold before anything is measured (P1-0)."""

from ember.records import schema as s

GATES = s.Schema(
    "gates",
    "Hard gates: nothing is measured before they hold",
    (
        s.text("gate", "what is checked"),
        s.STATUS,
        s.flag("passed", "whether the gate holds; a skipped gate holds by its reason"),
        s.text("detail", "what was found"),
        s.EVIDENCE,
    ),
    key=("gate",),
)

MODEL_SNAPSHOT = s.Schema(
    "model_snapshot",
    "The main model, file by file",
    (
        s.text("model", "name in the configuration"),
        s.text("file", "file below the model's directory"),
        s.integer("bytes", "B", "size of the file"),
        s.text("sha256", "hash of its content"),
        s.integer("parameters", "", "parameters of the whole model"),
        s.text("revision", "revision or content hash of the snapshot"),
        s.WEIGHTS,
        s.EVIDENCE,
    ),
    key=("model", "file"),
)
