"""Tables of conversations whose KV stays from turn to turn (L-5)."""

from ember.records import schema as s

_TURN = (
    s.text(
        "kind",
        "kept: only what is new is prefilled; replay: all of it in every turn",
        values=("kept", "replay"),
    ),
    s.integer("turn", "", "number of the turn, from 1"),
)
_TOKENS = (
    s.integer("user_tokens", "tokens", "said by the user, with the template around them"),
    s.integer("cached_tokens", "tokens", "reused by the turn's prefill"),
    s.integer("answer_tokens", "tokens", "of the answer"),
    s.integer("length", "tokens", "of the conversation after the turn; kept: all of it cached"),
    s.text("answer_sha256", "of the answer's token ids: what both kinds must share"),
)

TURN_RUNS = s.Schema(
    "lowbit_turn_runs",
    "Turns of conversations, greedily decoded",
    (
        *_TURN,
        s.integer("repeat", "", "number of the conversation"),
        *_TOKENS,
        s.number("prefill_ms", "ms", "until the answer's first logits, look-up and copies too"),
        s.number("decode_ms", "ms", "of the answer's steps"),
        s.number("close_ms", "ms", "running and keeping the answer after it was given"),
        *s.MACHINE,
    ),
    key=("kind", "turn", "repeat"),
)

LOWBIT_CONVERSATION = s.Schema(
    "lowbit_conversation",
    "Time and cached length by turn, and whether answers equal a full replay's (L-5)",
    (
        *_TURN,
        s.integer("n", "", "conversations"),
        *_TOKENS,
        s.flag("equal", "whether the answers of all runs of both kinds are the same tokens"),
        *(
            column
            for name, meaning in (
                ("prefill_ms", "until the answer's first logits"),
                ("decode_ms", "of the answer's steps"),
                ("close_ms", "keeping the answer"),
            )
            for column in s.spread(name, "ms", meaning, ("median", "min", "max"))
        ),
        *s.MACHINE,
    ),
    key=("kind", "turn"),
)
