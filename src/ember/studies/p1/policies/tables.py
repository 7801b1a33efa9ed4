"""Tables of the cache policies: what each recomputes by round, and what that costs (P1-5, P1-6)."""

from ember.records import schema as s

SHARINGS = ("independent", "shared")

_POINT = s.text("point", "workload: context/generation")
_CONTEXT = s.integer("context", "tokens", "prompt length")
_GENERATION = s.integer("generation", "tokens", "generated tokens of a candidate")
_SHARING = s.text("sharing", "whether every candidate prefills, or a prompt once", values=SHARINGS)
_POLICY = s.text("policy", "id of the policy")
_LABEL = s.text("label", "name of the policy in figures")
_ROUND = s.integer("round", "", "round, from 1; the weights move between rounds")


def _cells(name: str, meaning: str) -> s.Column:
    return s.integer(name, "cells", meaning + "; a cell is one token in one layer")


def _plan(name: str, unit: str, meaning: str) -> s.Column:
    return s.Column(name, "list[int]", unit, f"{meaning}, of each plan of the round")


POLICY_ROUNDS = s.Schema(
    "policy_rounds",
    "What each cache policy recomputes and reuses, round by round, counted by the simulator",
    (
        _POINT,
        _CONTEXT,
        _GENERATION,
        s.integer("prefix", "tokens", "leading tokens that all prompts share"),
        _SHARING,
        _POLICY,
        _LABEL,
        s.integer("rank", "", "rank of the policy's low-rank correction; 0: none"),
        s.integer("frozen_layers", "layers", "first layers that do not train"),
        _ROUND,
        s.integer("num_layers", "layers", "layers of the model"),
        s.integer("prompts", "", "prefills of the round"),
        _cells("recompute_cells", "computed anew"),
        _cells("reuse_cells", "taken from the cache"),
        _cells("corrected_cells", "reused after a low-rank correction"),
        s.integer("full_refreshes", "", "prefills that recompute everything"),
        s.number("recompute_ratio", "fraction", "recomputed share of all cells"),
        _cells("stale_cells", "in use though a fresh prefill would differ"),
        s.number("mean_staleness", "updates", "updates missed, mean over all cells in use"),
        s.integer("hits", "", "prefills that reuse something"),
        s.integer("misses", "", "prefills that reuse nothing"),
        s.Column("recompute_by_layer", "list[int]", "cells", "recomputed cells of each layer"),
        s.Column("token_bounds", "list[int]", "", "first tokens of recompute_by_token"),
        s.Column("recompute_by_token", "list[int]", "cells", "of a token in each band"),
        _plan("plan_prefills", "", "prefills"),
        _plan("plan_start_layer", "", "first recomputed layer"),
        _plan("plan_stop_layer", "", "first layer above the recomputed ones"),
        _plan("plan_start_token", "", "first recomputed token"),
        _plan("plan_prefix", "tokens", "prefix taken from another prompt"),
        _plan("plan_correct", "", "1 where stale cells are corrected"),
        s.EVIDENCE,
    ),
    key=("point", "sharing", "policy", "round"),
)

CUMULATIVE_COST = s.Schema(
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
        s.number("prefill_s", "s", "recomputing prompts"),
        s.number("decode_s", "s", "single-token steps of all candidates, each on its own"),
        s.number("sampling_s", "s", "choosing tokens"),
        s.number("transfer_s", "s", "copies between host and device"),
        s.number("correction_s", "s", "low-rank corrections of stale KV"),
        s.number("update_s", "s", "replacing the adapter in the weights, from the second round on"),
        s.number("round_s", "s", "the round, sum of the above"),
        s.number("cumulative_s", "s", "rounds up to this one"),
        s.number("cumulative_low_s", "s", "2.5 % bound of cumulative_s, bootstrap over repeats"),
        s.number("cumulative_high_s", "s", "97.5 % bound of cumulative_s, bootstrap over repeats"),
        s.number("savings_vs_naive", "fraction", "1 - cumulative_s / naive's, same sharing"),
        s.number("savings_low", "fraction", "2.5 % bound of savings_vs_naive"),
        s.number("savings_high", "fraction", "97.5 % bound of savings_vs_naive"),
        s.MODEL,
        s.WEIGHTS,
        s.text("device", "where the measured tables come from"),
        s.DTYPE,
        s.EVIDENCE,
    ),
    key=("point", "policy", "sharing", "round"),
)

POLICY_SUMMARY = s.Schema(
    "policy_summary",
    "Cache policies over the whole loop: what they recompute, and their modelled cost",
    (
        _POINT,
        s.text("sharing", _SHARING.meaning),
        _POLICY,
        _LABEL,
        s.integer("rounds", "", "rounds"),
        s.number("recompute_ratio", "fraction", "recomputed cells / all cells, all rounds"),
        s.number("stale_ratio", "fraction", "stale cells in use / all cells, all rounds"),
        s.number("mean_staleness", "updates", "updates missed, mean over cells and rounds"),
        s.integer("full_refreshes", "", "prefills that recompute everything"),
        s.integer("hits", "", "prefills that reuse something"),
        s.integer("misses", "", "prefills that reuse nothing"),
        s.number("prefill_s", "s", "all rounds"),
        s.number("correction_s", "s", "all rounds"),
        s.number("total_s", "s", "all rounds, decode and sampling included"),
        s.number("savings_vs_naive", "fraction", "1 - total_s / that of naive"),
        s.number("savings_low", "fraction", "2.5 % bound"),
        s.number("savings_high", "fraction", "97.5 % bound"),
        s.MODEL,
        s.WEIGHTS,
        s.text("device", "where the measured tables come from"),
        s.EVIDENCE,
    ),
    key=("point", "sharing", "policy"),
)
