"""Tables of the prefix-cache sweep: one row per timed prefill, and savings per point (P1-2.3)."""

from ember.records import schema as s

_PROMPT = s.integer("prompt_tokens", "tokens", "prompt length, prefix and suffix")
_PREFIX = s.integer("prefix_tokens", "tokens", "leading tokens that all documents share")

PREFIX_SWEEP = s.Schema(
    "prefix_sweep",
    "Prefill of one prompt with or without the prefix cache; two rows per document and point",
    (
        _PROMPT,
        _PREFIX,
        s.integer("document", "", "document of the shared-prefix workload"),
        s.integer("shard", "", "process that measured the document, from 0"),
        s.integer("order", "", "place in the shard's sequence of timed prefills, from 0"),
        s.flag("cached", "with the prefix cache"),
        s.integer("reused_tokens", "tokens", "tokens taken from the prefix cache"),
        s.number("prefill_ms", "ms", "prompt to logits: look-up, copies and storing included"),
        s.number("lookup_ms", "ms", "of it: matching and copying the stored segments"),
        s.number("store_ms", "ms", "of it: storing the new segments"),
        s.integer("first_token", "", "most likely next token (temperature 0)"),
        s.number("top_margin", "", "how far its logit stands above the second"),
        s.flag("tokens_equal", "first token equals the uncached run's; null there", nullable=True),
        s.maybe("max_logit_diff", "", "largest, to the uncached run; null there"),
        *s.MEASURED_ON,
    ),
    key=("prompt_tokens", "prefix_tokens", "document", "cached"),
)

PREFIX_SAVINGS = s.Schema(
    "prefix_savings",
    "Prefill saved by prefix reuse, beside what the operation count predicts",
    (
        _PROMPT,
        _PREFIX,
        s.integer("documents", "", "documents, each timed with and without"),
        s.number("uncached_ms_median", "ms", "median prefill without the cache"),
        s.number("cached_ms_median", "ms", "median prefill with the cache"),
        s.number("savings", "fraction", "median over documents of 1 - cached / uncached"),
        s.number("savings_low", "fraction", "2.5 % bound, bootstrap over documents"),
        s.number("savings_high", "fraction", "97.5 % bound, bootstrap over documents"),
        s.number("speedup", "", "1 / (1 - savings)"),
        s.number("expected_savings", "fraction", "prefix / prompt"),
        s.number("expected_with_attention", "fraction", "by the operation count"),
        s.number("attention_share", "fraction", "attention's part of the operation count"),
        s.number("overhead_share", "fraction", "look-up, copies and storing / uncached"),
        s.number("tokens_equal_share", "fraction", "documents with the same first token"),
        s.number("near_ties_share", "fraction", "documents with two best logits about equal"),
        s.number("max_logit_diff", "", "largest absolute logit difference"),
        s.flag("within_tolerance", "logits; and first tokens equal but in near ties"),
        *s.MEASURED_ON,
    ),
    key=("prompt_tokens", "prefix_tokens"),
)
