"""Tables of the cache policies: what each recomputes by round, and what that costs (P1-5, P1-6)."""

from ember.records.schema import (
    DTYPE,
    EVIDENCE,
    MODEL,
    WEIGHTS,
    Column,
    Schema,
    integer,
    number,
    text,
)

SHARINGS = ("independent", "shared")

_POINT = text("point", "workload: context/generation")
_CONTEXT = integer("context", "tokens", "prompt length")
_GENERATION = integer("generation", "tokens", "generated tokens of a candidate")
_SHARING = text(
    "sharing",
    "independent: every candidate is a request and prefills by the policy; "
    "shared: a prompt is prefilled once for all its candidates",
    values=SHARINGS,
)
_POLICY = text("policy", "id of the policy")
_LABEL = text("label", "name of the policy in figures")
_ROUND = integer("round", "", "round, from 1; the weights move between rounds")


def _cells(name: str, meaning: str) -> Column:
    return integer(name, "cells", meaning + "; a cell is one token in one layer")


def _plan(name: str, unit: str, meaning: str) -> Column:
    return Column(name, "list[int]", unit, f"{meaning}, of each plan of the round")


POLICY_ROUNDS = Schema(
    "policy_rounds",
    "What each cache policy recomputes and reuses, round by round, counted by the simulator",
    (
        _POINT,
        _CONTEXT,
        _GENERATION,
        integer("prefix", "tokens", "leading tokens that all prompts share"),
        _SHARING,
        _POLICY,
        _LABEL,
        integer("rank", "", "rank of the policy's low-rank correction; 0: none"),
        integer("frozen_layers", "layers", "first layers that do not train"),
        _ROUND,
        integer("num_layers", "layers", "layers of the model"),
        integer("prompts", "", "prefills of the round"),
        _cells("recompute_cells", "computed anew"),
        _cells("reuse_cells", "taken from the cache"),
        _cells("corrected_cells", "reused after a low-rank correction"),
        integer("full_refreshes", "", "prefills that recompute everything"),
        number("recompute_ratio", "fraction", "recomputed share of all cells"),
        _cells("stale_cells", "in use though a fresh prefill would differ"),
        number("mean_staleness", "updates", "updates missed, mean over all cells in use"),
        integer("hits", "", "prefills that reuse something"),
        integer("misses", "", "prefills that reuse nothing"),
        Column("recompute_by_layer", "list[int]", "cells", "recomputed cells of each layer"),
        Column("token_bounds", "list[int]", "", "first tokens of the bands of recompute_by_token"),
        Column(
            "recompute_by_token", "list[int]", "cells", "recomputed cells, each token of a band"
        ),
        _plan("plan_prefills", "", "prefills"),
        _plan("plan_start_layer", "", "first recomputed layer"),
        _plan("plan_stop_layer", "", "first layer above the recomputed ones"),
        _plan("plan_start_token", "", "first recomputed token"),
        _plan("plan_prefix", "tokens", "prefix taken from another prompt"),
        _plan("plan_correct", "", "1 where stale cells are corrected"),
        EVIDENCE,
    ),
    key=("point", "sharing", "policy", "round"),
)


CUMULATIVE_COST = Schema(
    "cumulative_cost",
    "Modelled time of the rollouts under each cache policy, by round and summed, from measured "
    "tables",
    (
        _POINT,
        _CONTEXT,
        _GENERATION,
        _POLICY,
        _LABEL,
        _SHARING,
        _ROUND,
        number("prefill_s", "s", "recomputing prompts"),
        number("decode_s", "s", "single-token steps of all candidates, each on its own"),
        number("sampling_s", "s", "choosing tokens"),
        number("transfer_s", "s", "copies between host and device"),
        number("correction_s", "s", "low-rank corrections of stale KV"),
        number("update_s", "s", "replacing the adapter in the weights, from the second round on"),
        number("round_s", "s", "the round, sum of the above"),
        number("cumulative_s", "s", "rounds up to this one"),
        number("cumulative_low_s", "s", "2.5 % bound of cumulative_s, bootstrap over repeats"),
        number("cumulative_high_s", "s", "97.5 % bound of cumulative_s, bootstrap over repeats"),
        number("savings_vs_naive", "fraction", "1 - cumulative_s / naive's, same sharing"),
        number("savings_low", "fraction", "2.5 % bound of savings_vs_naive"),
        number("savings_high", "fraction", "97.5 % bound of savings_vs_naive"),
        MODEL,
        WEIGHTS,
        text("device", "where the measured tables come from"),
        DTYPE,
        EVIDENCE,
    ),
    key=("point", "policy", "sharing", "round"),
)


POLICY_SUMMARY = Schema(
    "policy_summary",
    "Cache policies over the whole loop: what they recompute, and their modelled cost",
    (
        text("point", "workload: context/generation"),
        text("sharing", "independent: every candidate prefills; shared: every prompt"),
        text("policy", "id of the policy"),
        text("label", "name of the policy"),
        integer("rounds", "", "rounds"),
        number("recompute_ratio", "fraction", "recomputed cells / all cells, all rounds"),
        number("stale_ratio", "fraction", "stale cells in use / all cells, all rounds"),
        number("mean_staleness", "updates", "updates missed, mean over cells and rounds"),
        integer("full_refreshes", "", "prefills that recompute everything"),
        integer("hits", "", "prefills that reuse something"),
        integer("misses", "", "prefills that reuse nothing"),
        number("prefill_s", "s", "all rounds"),
        number("correction_s", "s", "all rounds"),
        number("total_s", "s", "all rounds, decode and sampling included"),
        number("savings_vs_naive", "fraction", "1 - total_s / that of naive"),
        number("savings_low", "fraction", "2.5 % bound"),
        number("savings_high", "fraction", "97.5 % bound"),
        MODEL,
        WEIGHTS,
        text("device", "where the measured tables come from"),
        EVIDENCE,
    ),
    key=("point", "sharing", "policy"),
)
