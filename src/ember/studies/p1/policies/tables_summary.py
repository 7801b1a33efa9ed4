"""The cache policies side by side, over the whole loop (P1-5.3, P1-6.1)."""

from ember.records.schema import EVIDENCE, WEIGHTS, Column, Schema

POLICY_SUMMARY = Schema(
    "policy_summary",
    "Cache policies over the whole loop: what they recompute, and their modelled cost",
    (
        Column("point", "str", "", "workload: context/generation"),
        Column("sharing", "str", "", "independent: every candidate prefills; shared: every prompt"),
        Column("policy", "str", "", "id of the policy"),
        Column("label", "str", "", "name of the policy"),
        Column("rounds", "int", "", "rounds"),
        Column("recompute_ratio", "float", "fraction", "recomputed cells / all cells, all rounds"),
        Column("stale_ratio", "float", "fraction", "stale cells in use / all cells, all rounds"),
        Column("mean_staleness", "float", "updates", "updates missed, mean over cells and rounds"),
        Column("full_refreshes", "int", "", "prefills that recompute everything"),
        Column("hits", "int", "", "prefills that reuse something"),
        Column("misses", "int", "", "prefills that reuse nothing"),
        Column("prefill_s", "float", "s", "all rounds"),
        Column("correction_s", "float", "s", "all rounds"),
        Column("total_s", "float", "s", "all rounds, decode and sampling included"),
        Column("savings_vs_naive", "float", "fraction", "1 - total_s / that of naive"),
        Column("savings_low", "float", "fraction", "2.5 % bound"),
        Column("savings_high", "float", "fraction", "97.5 % bound"),
        Column("model", "str", "", "name of the model"),
        WEIGHTS,
        Column("device", "str", "", "where the measured tables come from"),
        EVIDENCE,
    ),
    key=("point", "sharing", "policy"),
)
