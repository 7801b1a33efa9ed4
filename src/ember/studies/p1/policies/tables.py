"""Tables of the cache policies: what each recomputes by round, and what that costs (P1-5, P1-6)."""

from ember.records.schema import EVIDENCE, WEIGHTS, Column, Schema

SHARINGS = ("independent", "shared")

_POINT = Column("point", "str", "", "workload: context/generation")
_CONTEXT = Column("context", "int", "tokens", "prompt length")
_GENERATION = Column("generation", "int", "tokens", "generated tokens of a candidate")
_SHARING = Column(
    "sharing",
    "str",
    "",
    "independent: every candidate is a request and prefills by the policy; shared: a prompt is "
    "prefilled once for all its candidates",
    values=SHARINGS,
)
_POLICY = Column("policy", "str", "", "id of the policy")
_LABEL = Column("label", "str", "", "name of the policy in figures")
_ROUND = Column("round", "int", "", "round, from 1; the weights move between rounds")


def _cells(name: str, meaning: str) -> Column:
    return Column(name, "int", "cells", meaning + "; a cell is one token in one layer")


def _plan(name: str, unit: str, meaning: str) -> Column:
    return Column(name, "list[int]", unit, f"{meaning}, of each plan of the round")


POLICY_ROUNDS = Schema(
    "policy_rounds",
    "What each cache policy recomputes and reuses, round by round, counted by the simulator",
    (
        _POINT,
        _CONTEXT,
        _GENERATION,
        Column("prefix", "int", "tokens", "leading tokens that all prompts share"),
        _SHARING,
        _POLICY,
        _LABEL,
        Column("rank", "int", "", "rank of the policy's low-rank correction; 0: none"),
        Column("frozen_layers", "int", "layers", "first layers that do not train"),
        _ROUND,
        Column("num_layers", "int", "layers", "layers of the model"),
        Column("prompts", "int", "", "prefills of the round"),
        _cells("recompute_cells", "computed anew"),
        _cells("reuse_cells", "taken from the cache"),
        _cells("corrected_cells", "reused after a low-rank correction"),
        Column("full_refreshes", "int", "", "prefills that recompute everything"),
        Column("recompute_ratio", "float", "fraction", "recomputed share of all cells"),
        _cells("stale_cells", "in use though a fresh prefill would differ"),
        Column("mean_staleness", "float", "updates", "updates missed, mean over all cells in use"),
        Column("hits", "int", "", "prefills that reuse something"),
        Column("misses", "int", "", "prefills that reuse nothing"),
        Column("recompute_by_layer", "list[int]", "cells", "recomputed cells of each layer"),
        Column("token_bounds", "list[int]", "", "first tokens of the bands of recompute_by_token"),
        Column(
            "recompute_by_token", "list[int]", "cells", "recomputed cells of each token of a band"
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


def _seconds(name: str, meaning: str) -> Column:
    return Column(name, "float", "s", meaning)


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
        _seconds("prefill_s", "recomputing prompts"),
        _seconds("decode_s", "single-token steps of all candidates, each on its own"),
        _seconds("sampling_s", "choosing tokens"),
        _seconds("transfer_s", "copies between host and device"),
        _seconds("correction_s", "low-rank corrections of stale KV"),
        _seconds("update_s", "replacing the adapter in the weights, from the second round on"),
        _seconds("round_s", "the round, sum of the above"),
        _seconds("cumulative_s", "rounds up to this one"),
        _seconds("cumulative_low_s", "2.5 % bound of cumulative_s, bootstrap over repeats"),
        _seconds("cumulative_high_s", "97.5 % bound of cumulative_s, bootstrap over repeats"),
        Column(
            "savings_vs_naive",
            "float",
            "fraction",
            "1 - cumulative_s / that of recomputing everything, same sharing",
        ),
        Column("savings_low", "float", "fraction", "2.5 % bound of savings_vs_naive"),
        Column("savings_high", "float", "fraction", "97.5 % bound of savings_vs_naive"),
        Column("model", "str", "", "name of the model"),
        WEIGHTS,
        Column("device", "str", "", "where the measured tables come from"),
        Column("dtype", "str", "", "number format of weights and cache"),
        EVIDENCE,
    ),
    key=("point", "policy", "sharing", "round"),
)
