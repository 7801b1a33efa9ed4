"""What the same rollout gives again, in other batches and by other means (P1-4.3)."""

from ember.records.schema import (
    DEVICE,
    DEVICE_NAME,
    DTYPE,
    EVIDENCE,
    MODEL,
    OUTCOME,
    WEIGHTS,
    Schema,
    flag,
    integer,
    maybe,
    number,
    text,
)

ROLLOUT_CONSISTENCY = Schema(
    "rollout_consistency",
    "What the same rollout gives again, under other batch compositions, and by other means",
    (
        text("check", "what is compared with the rollout"),
        text("sampling", "greedy, or temperature and cuts"),
        integer("candidates", "", "completions compared"),
        integer("tokens", "tokens", "tokens compared"),
        integer(
            "token_mismatches",
            "tokens",
            "tokens that differ; by a forward: that are not the likeliest (greedy), or cut there",
            nullable=True,
        ),
        maybe(
            "max_logprob_diff",
            "",
            "largest absolute difference of a token's raw log-probability, equal tokens only",
        ),
        maybe("max_sampled_logprob_diff", "", "the same of log-probabilities as sampled"),
        number("tolerance", "", "largest difference allowed; 0: equal to the last bit"),
        flag("holds", "no mismatch, no larger difference", nullable=True),
        text("meaning", "how it was done"),
        DEVICE,
        DEVICE_NAME,
        DTYPE,
        MODEL,
        WEIGHTS,
        EVIDENCE,
        *OUTCOME,
    ),
    key=("check", "sampling"),
)
