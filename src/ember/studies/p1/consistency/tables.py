"""What the same rollout gives again, in other batches and by other means (P1-4.3)."""

from ember.records import schema as s

ROLLOUT_CONSISTENCY = s.Schema(
    "rollout_consistency",
    "What the same rollout gives again, under other batch compositions, and by other means",
    (
        s.text("check", "what is compared with the rollout"),
        s.text("sampling", "greedy, or temperature and cuts"),
        s.integer("candidates", "", "completions compared"),
        s.integer("tokens", "tokens", "tokens compared"),
        s.integer("token_mismatches", "tokens", "differing, unlikely or cut", nullable=True),
        s.maybe("max_logprob_diff", "", "of raw log-probabilities of equal tokens"),
        s.maybe("max_sampled_logprob_diff", "", "the same of log-probabilities as sampled"),
        s.number("tolerance", "", "largest difference allowed; 0: equal to the last bit"),
        s.flag("holds", "no mismatch, no larger difference", nullable=True),
        s.text("meaning", "how it was done"),
        *s.MACHINE,
        *s.OUTCOME,
    ),
    key=("check", "sampling"),
)
