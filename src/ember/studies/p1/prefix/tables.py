"""Tables of the prefix cache: timed prefills, savings, where the rest goes, identity (P1-2.3)."""

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
        s.flag("first", "timed first of the document's pair; alternates from document to document"),
        s.integer("reused_tokens", "tokens", "tokens taken from the prefix cache"),
        s.number("prefill_ms", "ms", "prompt to logits: look-up, copies and storing included"),
        s.number("lookup_ms", "ms", "of it: matching and copying the stored segments"),
        s.number("store_ms", "ms", "of it: storing the new segments"),
        s.integer("first_token", "", "most likely next token (temperature 0)"),
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
        s.number("ratio_to_operations", "", "savings / expected_with_attention"),
        s.number("ratio_low", "", "savings_low / expected_with_attention"),
        s.number("ratio_high", "", "savings_high / expected_with_attention"),
        s.number("attention_share", "fraction", "attention's part of the operation count"),
        s.number("overhead_share", "fraction", "look-up, copies and storing / uncached"),
        s.number("cached_first_share", "fraction", "documents whose cached run was timed first"),
        s.maybe("order_effect", "fraction", "savings where it was, less savings where it was not"),
        s.number("tokens_equal_share", "fraction", "timed runs with the same first token"),
        s.number("max_logit_diff", "", "largest absolute logit difference of timed runs"),
        s.flag("within_tolerance", "no logit of a timed run differs by more"),
        s.integer("float32_documents", "", "documents of the check in float32", nullable=True),
        s.maybe("float32_tokens_equal_share", "fraction", "of them with the same first token"),
        s.maybe("float32_max_logit_diff", "", "largest absolute logit difference there"),
        *s.MEASURED_ON,
    ),
    key=("prompt_tokens", "prefix_tokens"),
)

PARTS = {
    "uncached": "prefill without the cache",
    "operations": "less the operations that the reused prefix saves, at the uncached speed",
    "products": "what the suffix alone, as a prompt, takes beyond its share of the operations",
    "attention": "what it takes beyond that, after the prefix, and beyond those operations",
    "suffix": "products and attention together, where the sweep has no prompt of that length",
    "lookup": "matching and copying the stored segments",
    "store": "storing the new segments",
    "cached": "prefill with the cache, sum of the above",
}

PREFIX_LOSSES = s.Schema(
    "prefix_losses",
    "From the uncached prefill to the cached one: what reuse saves, and what of it is lost again",
    (
        _PROMPT,
        _PREFIX,
        s.integer("documents", "", "documents, each timed with and without"),
        s.integer("step", "", "place of the part in the sum, from 0"),
        s.text("part", "; ".join(f"{k}: {v}" for k, v in PARTS.items()), values=tuple(PARTS)),
        s.number("ms", "ms", "from medians over documents; below 0: saved"),
        s.number("low", "ms", "2.5 % bound, bootstrap over documents"),
        s.number("high", "ms", "97.5 % bound, bootstrap over documents"),
        *s.MEASURED_ON,
    ),
    key=("prompt_tokens", "prefix_tokens", "part"),
)

PREFIX_IDENTITY = s.Schema(
    "prefix_identity",
    "First tokens with and without the prefix cache in float32, where rounding excuses none",
    (
        _PROMPT,
        _PREFIX,
        s.integer("document", "", "document of the shared-prefix workload"),
        s.integer("reused_tokens", "tokens", "tokens taken from the prefix cache"),
        s.flag("tokens_equal", "first token equals the uncached run's"),
        s.number("max_logit_diff", "", "largest, to the uncached run"),
        *s.MEASURED_ON,
    ),
    key=("prompt_tokens", "prefix_tokens", "document"),
)
