"""Tables of the prefix-cache sweep: one row per timed prefill, and savings per point (P1-2.3)."""

from ember.records.schema import EVIDENCE, WEIGHTS, Column, Schema

_PROMPT = Column("prompt_tokens", "int", "tokens", "prompt length, prefix and suffix")
_PREFIX = Column("prefix_tokens", "int", "tokens", "leading tokens that all documents share")
_DEVICE = Column("device", "str", "", "where it ran")
_DTYPE = Column("dtype", "str", "", "number format of weights and cache")
_MODEL = Column("model", "str", "", "name of the model")

PREFIX_SWEEP = Schema(
    "prefix_sweep",
    "Prefill of one prompt with or without the prefix cache; two rows per document and point",
    (
        _PROMPT,
        _PREFIX,
        Column("document", "int", "", "document of the shared-prefix workload"),
        Column("shard", "int", "", "process that measured the document, from 0"),
        Column("order", "int", "", "place in the shard's sequence of timed prefills, from 0"),
        Column("cached", "bool", "", "with the prefix cache"),
        Column("reused_tokens", "int", "tokens", "tokens taken from the prefix cache"),
        Column(
            "prefill_ms", "float", "ms", "prompt to logits: look-up, copies and storing included"
        ),
        Column("lookup_ms", "float", "ms", "of it: matching and copying the stored segments"),
        Column("store_ms", "float", "ms", "of it: storing the new segments"),
        Column("first_token", "int", "", "most likely next token (temperature 0)"),
        Column("top_margin", "float", "", "how far its logit stands above the second"),
        Column(
            "tokens_equal",
            "bool",
            "",
            "first token equals the uncached run's; null on the uncached row",
            nullable=True,
        ),
        Column(
            "max_logit_diff",
            "float",
            "",
            "largest absolute logit difference to the uncached run; null on the uncached row",
            nullable=True,
        ),
        _DEVICE,
        _DTYPE,
        _MODEL,
        WEIGHTS,
        EVIDENCE,
    ),
    key=("prompt_tokens", "prefix_tokens", "document", "cached"),
)

PREFIX_SAVINGS = Schema(
    "prefix_savings",
    "Prefill saved by prefix reuse, beside what the operation count predicts",
    (
        _PROMPT,
        _PREFIX,
        Column("documents", "int", "", "documents, each timed with and without"),
        Column("uncached_ms_median", "float", "ms", "median prefill without the cache"),
        Column("cached_ms_median", "float", "ms", "median prefill with the cache"),
        Column("savings", "float", "fraction", "median over documents of 1 - cached / uncached"),
        Column("savings_low", "float", "fraction", "2.5 % bound, bootstrap over documents"),
        Column("savings_high", "float", "fraction", "97.5 % bound, bootstrap over documents"),
        Column("speedup", "float", "", "1 / (1 - savings)"),
        Column("expected_savings", "float", "fraction", "prefix / prompt"),
        Column(
            "expected_with_attention",
            "float",
            "fraction",
            "from the operation count: matrices by suffix tokens, attention by the causal area",
        ),
        Column("attention_share", "float", "fraction", "attention's part of the operation count"),
        Column("overhead_share", "float", "fraction", "look-up, copies and storing / uncached"),
        Column("tokens_equal_share", "float", "fraction", "documents with the same first token"),
        Column(
            "near_ties_share",
            "float",
            "fraction",
            "documents whose two best logits are no further apart than twice the difference",
        ),
        Column("max_logit_diff", "float", "", "largest absolute logit difference"),
        Column(
            "within_tolerance",
            "bool",
            "",
            "first tokens equal but in near ties, and all logits within the tolerance",
        ),
        _DEVICE,
        _DTYPE,
        _MODEL,
        WEIGHTS,
        EVIDENCE,
    ),
    key=("prompt_tokens", "prefix_tokens"),
)
