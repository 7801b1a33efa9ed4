"""Tables of the prefix-cache sweep: one row per timed prefill, and savings per point (P1-2.3)."""

from ember.records.schema import MEASURED_ON, Schema, flag, integer, maybe, number

_PROMPT = integer("prompt_tokens", "tokens", "prompt length, prefix and suffix")
_PREFIX = integer("prefix_tokens", "tokens", "leading tokens that all documents share")

PREFIX_SWEEP = Schema(
    "prefix_sweep",
    "Prefill of one prompt with or without the prefix cache; two rows per document and point",
    (
        _PROMPT,
        _PREFIX,
        integer("document", "", "document of the shared-prefix workload"),
        integer("shard", "", "process that measured the document, from 0"),
        integer("order", "", "place in the shard's sequence of timed prefills, from 0"),
        flag("cached", "with the prefix cache"),
        integer("reused_tokens", "tokens", "tokens taken from the prefix cache"),
        number("prefill_ms", "ms", "prompt to logits: look-up, copies and storing included"),
        number("lookup_ms", "ms", "of it: matching and copying the stored segments"),
        number("store_ms", "ms", "of it: storing the new segments"),
        integer("first_token", "", "most likely next token (temperature 0)"),
        number("top_margin", "", "how far its logit stands above the second"),
        flag("tokens_equal", "first token equals the uncached run's; null there", nullable=True),
        maybe(
            "max_logit_diff",
            "",
            "largest absolute logit difference to the uncached run; null on the uncached row",
        ),
        *MEASURED_ON,
    ),
    key=("prompt_tokens", "prefix_tokens", "document", "cached"),
)

PREFIX_SAVINGS = Schema(
    "prefix_savings",
    "Prefill saved by prefix reuse, beside what the operation count predicts",
    (
        _PROMPT,
        _PREFIX,
        integer("documents", "", "documents, each timed with and without"),
        number("uncached_ms_median", "ms", "median prefill without the cache"),
        number("cached_ms_median", "ms", "median prefill with the cache"),
        number("savings", "fraction", "median over documents of 1 - cached / uncached"),
        number("savings_low", "fraction", "2.5 % bound, bootstrap over documents"),
        number("savings_high", "fraction", "97.5 % bound, bootstrap over documents"),
        number("speedup", "", "1 / (1 - savings)"),
        number("expected_savings", "fraction", "prefix / prompt"),
        number(
            "expected_with_attention",
            "fraction",
            "from the operation count: matrices by suffix tokens, attention by the causal area",
        ),
        number("attention_share", "fraction", "attention's part of the operation count"),
        number("overhead_share", "fraction", "look-up, copies and storing / uncached"),
        number("tokens_equal_share", "fraction", "documents with the same first token"),
        number(
            "near_ties_share",
            "fraction",
            "documents whose two best logits are no further apart than twice the difference",
        ),
        number("max_logit_diff", "", "largest absolute logit difference"),
        flag(
            "within_tolerance",
            "first tokens equal but in near ties, logits within the tolerance",
        ),
        *MEASURED_ON,
    ),
    key=("prompt_tokens", "prefix_tokens"),
)
