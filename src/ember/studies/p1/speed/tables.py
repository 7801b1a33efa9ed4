"""Table of the engine beside Transformers' generate, one row per repeat."""

from ember.records.schema import EVIDENCE, MODEL, OUTCOME, WEIGHTS, Schema, integer, maybe, text

ENGINE_SPEED = Schema(
    "engine_speed",
    "Greedy generation by this engine and by Transformers, same model, tokens, threads and process",
    (
        text("engine", "ember or transformers"),
        text("version", "version of the engine", nullable=True),
        integer("prompt_tokens", "tokens", "prompt length"),
        integer("generated_tokens", "tokens", "new tokens, the same for both"),
        integer("repeat", "", "recorded run, alternating between the engines"),
        maybe("prefill_ms", "ms", "prompt to the first token"),
        maybe("decode_ms", "ms", "the tokens after the first"),
        maybe("tokens_per_s", "tokens/s", "decode speed: tokens after the first by decode time"),
        maybe("ratio_to_transformers", "", "decode speed over Transformers' in the same repeat"),
        maybe(
            "tokens_equal_share",
            "fraction",
            "leading tokens that are Transformers', same repeat",
        ),
        integer("threads", "", "CPU threads of both"),
        text("device", "where both ran"),
        text("dtype", "number format of both"),
        MODEL,
        WEIGHTS,
        EVIDENCE,
        *OUTCOME,
    ),
    key=("engine", "repeat"),
)
