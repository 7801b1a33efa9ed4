"""Table of the engine beside Transformers' generate, one row per repeat."""

from ember.records import schema as s

ENGINE_SPEED = s.Schema(
    "engine_speed",
    "Greedy generation by this engine and by Transformers, same model, tokens, threads and process",
    (
        s.text("engine", "ember or transformers"),
        s.text("version", "version of the engine", nullable=True),
        s.integer("prompt_tokens", "tokens", "prompt length"),
        s.integer("generated_tokens", "tokens", "new tokens, the same for both"),
        s.integer("repeat", "", "recorded run, alternating between the engines"),
        s.maybe("prefill_ms", "ms", "prompt to the first token"),
        s.maybe("decode_ms", "ms", "the tokens after the first"),
        s.maybe("tokens_per_s", "tokens/s", "decode speed: tokens after the first by decode time"),
        s.maybe("ratio_to_transformers", "", "decode speed over Transformers' in the same repeat"),
        s.maybe("tokens_equal_share", "fraction", "leading ones that are Transformers'"),
        s.integer("threads", "", "CPU threads of both"),
        *s.MEASURED_ON,
        *s.OUTCOME,
    ),
    key=("engine", "repeat"),
)
