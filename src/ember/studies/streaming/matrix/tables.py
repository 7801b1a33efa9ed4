"""Controlled eviction against lazy pruning: success, bars and the ledger (S-3, S-6)."""

from dataclasses import replace

from ember.records import schema as s
from ember.studies.streaming.diagnose.tables import PATH, RATIO
from ember.studies.streaming.quality.tables import METHOD, POINT

_TIMED = tuple(replace(column, nullable=True) for column in (*PATH, *RATIO))  # null: not timed

STREAMING_MATRIX = s.Schema(
    "streaming_matrix",
    "How much of lazy pruning's loss each change removes, at which time per token",
    (
        *POINT,
        *METHOD,
        s.integer("streams", "streams", "that were measured"),
        s.number("lazy_delta", "nats/token", "lazy pruning's loss above R = 1, same streams"),
        s.number("lazy_delta_low", "nats/token", "lower end of its 95 % interval"),
        s.number("delta", "nats/token", "the method's"),
        *s.estimate("saved", "nats/token", "the difference, paired by stream"),
        s.maybe("removed", "fraction", "saved / lazy_delta; null where that is no difference"),
        s.flag("max_drop_binds", "whether max_drop is below what a steady prune drops"),
        *_TIMED,
        s.text(
            "verdict",
            "success: half removed, interval above zero, TPOT within the bar in each repeat, on "
            "the fast path; or what lacks",
        ),
        s.flag("programme_bar", "whether the perplexity stays within the programme's own bar"),
        *s.MEASURED_ON,
        *s.OUTCOME,
    ),
    key=("corpus", "point"),
)

STREAMING_PROGRAMME = s.Schema(
    "streaming_programme",
    "The programme's points: period x max_drop x refresh (S-3)",
    (
        *POINT,
        *METHOD,
        s.integer("max_drop", "tokens", "most tokens dropped at once", nullable=True),
        s.integer("refresh_budget", "tokens", "old tokens kept"),
        s.flag("max_drop_binds", "whether a steady prune drops more than max_drop without it"),
        s.integer("streams", "streams", "that were measured"),
        s.number("ppl", "", "perplexity"),
        *s.estimate("ppl_change", "fraction", "above StreamingLLM's (R = 1) at the same peak"),
        s.number("bar", "fraction", "the programme's own bar"),
        s.text("verdict", "whether the bar is held, by the interval"),
        replace(PATH[0], nullable=True),
        s.maybe("steady_tpot_ms", "ms", "time per token; null where not timed"),
        *s.MEASURED_ON,
        *s.OUTCOME,
    ),
    key=("corpus", "point"),
)

STREAMING_LEDGER = s.Schema(
    "streaming_ledger",
    "Directions tried, and those that are stopped (S-6)",
    (
        s.text("direction", "eviction method"),
        s.integer("changes", "", "its points, in the order of the configuration"),
        s.integer("better", "", "of them: TPOT or loss better than lazy pruning's beyond noise"),
        s.integer("unimproved_in_a_row", "", "longest run of points without any gain"),
        s.maybe("best_saved", "nats/token", "largest saving on the long corpus"),
        s.maybe("best_tpot_ratio", "", "least TPOT over lazy pruning's with the same period"),
        s.number("noise", "fraction", "least change of TPOT that counts"),
        s.flag("stopped", "two consecutive changes without a gain"),
        s.text("note", "what follows"),
        s.MODEL,
        s.WEIGHTS,
        s.EVIDENCE,
    ),
    key=("direction",),
)
