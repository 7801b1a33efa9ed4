"""Table of the engine beside Transformers' generate, one row per repeat."""

from ember.records.schema import EVIDENCE, REASON, STATUS, WEIGHTS, Column, Schema

ENGINE_SPEED = Schema(
    "engine_speed",
    "Greedy generation by this engine and by Transformers, same model, tokens, threads and process",
    (
        Column("engine", "str", "", "ember or transformers"),
        Column("version", "str", "", "version of the engine", nullable=True),
        Column("prompt_tokens", "int", "tokens", "prompt length"),
        Column("generated_tokens", "int", "tokens", "new tokens, the same for both"),
        Column("repeat", "int", "", "recorded run, alternating between the engines"),
        Column("prefill_ms", "float", "ms", "prompt to the first token", nullable=True),
        Column("decode_ms", "float", "ms", "the tokens after the first", nullable=True),
        Column(
            "tokens_per_s",
            "float",
            "tokens/s",
            "decode speed: tokens after the first by decode time",
            nullable=True,
        ),
        Column(
            "ratio_to_transformers",
            "float",
            "",
            "decode speed over Transformers' in the same repeat",
            nullable=True,
        ),
        Column(
            "tokens_equal_share",
            "float",
            "fraction",
            "leading tokens that agree with Transformers' in the same repeat",
            nullable=True,
        ),
        Column("threads", "int", "", "CPU threads of both"),
        Column("device", "str", "", "where both ran"),
        Column("dtype", "str", "", "number format of both"),
        Column("model", "str", "", "name of the model"),
        WEIGHTS,
        EVIDENCE,
        STATUS,
        REASON,
    ),
    key=("engine", "repeat"),
)
