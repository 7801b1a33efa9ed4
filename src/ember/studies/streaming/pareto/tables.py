"""Time per token beside perplexity (S-7)."""

from ember.records import schema as s
from ember.studies.streaming.diagnose.tables import PATH
from ember.studies.streaming.quality.tables import METHOD, POINT

STREAMING_PARETO = s.Schema(
    "streaming_pareto",
    "Time per token against perplexity, point by point",
    (
        *POINT,
        *METHOD,
        *PATH,
        s.number("ppl", "", "perplexity"),
        s.number("ppl_change", "fraction", "above StreamingLLM's at the same peak, relative"),
        s.number("steady_tpot_ms", "ms", "without the first tokens, median over runs"),
        s.number("token_ms_p50", "ms", "median token"),
        s.number("token_ms_p90", "ms", "90th percentile"),
        s.number("total_s", "s", "prefill and decoding"),
        s.flag("on_front", "whether no point of the same path is better in both"),
        *s.MEASURED_ON,
    ),
    key=("corpus", "point", "path"),
)
