"""Tables of the cache policies: what each recomputes by round, and what that costs (P1-5, P1-6)."""

from ember.policies.cost import KEPT, SAVED
from ember.records import schema as s

SHARINGS = {
    "shared": "a prompt is prefilled once and its candidates share its KV",
    "independent": "every candidate is a request with KV of its own; all but a prompt's first find "
    "the whole prompt in the cache",
    "separate": "every candidate prefills for itself (the accounting at batch 1)",
}

_POINT = s.text("point", "workload: context/generation")
_CONTEXT = s.integer("context", "tokens", "prompt length")
_GENERATION = s.integer("generation", "tokens", "generated tokens of a candidate")
_SHARING = s.text(
    "sharing",
    "; ".join(f"{name}: {meaning}" for name, meaning in SHARINGS.items()),
    values=tuple(SHARINGS),
)
_RECURRENCE = s.integer("recurrence", "rounds", "a prompt comes in every so many")
_POLICY = s.text("policy", "id of the policy")
_LABEL = s.text("label", "name of the policy in figures")
_ROUND = s.integer("round", "", "round, from 1; the weights move between rounds")
_MACHINE = (
    s.MODEL,
    s.WEIGHTS,
    s.text("device", "where the measured tables come from"),
    s.DTYPE,
    s.EVIDENCE,
)


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
        _RECURRENCE,
        _POLICY,
        _LABEL,
        s.integer("rank", "", "rank of the policy's low-rank correction; 0: none"),
        s.integer("frozen_layers", "layers", "first layers that do not train"),
        s.Column("boundaries", "list[int]", "", "layers whose entering hidden states are kept"),
        _ROUND,
        s.integer("num_layers", "layers", "layers of the model"),
        s.integer("prompts", "", "prefill requests of the round"),
        _cells("recompute_cells", "computed anew"),
        _cells("reuse_cells", "taken from the cache"),
        _cells("corrected_cells", "reused after a low-rank correction"),
        s.integer("full_refreshes", "", "prefills that recompute everything"),
        s.number("recompute_ratio", "fraction", "recomputed share of all cells"),
        _cells("stale_cells", "in use though a fresh prefill would differ"),
        s.number("mean_staleness", "updates", "updates missed, mean over all cells in use"),
        s.integer("hits", "", "prefills that reuse something"),
        s.integer("misses", "", "prefills that reuse nothing"),
        s.Column("ages", "list[int]", "updates", "ages of the entries that were reused"),
        s.Column("age_prefills", "list[int]", "", "prefills that reused an entry of each age"),
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
    key=("point", "sharing", "recurrence", "policy", "round"),
)

_OPERATING = (
    _POINT,
    _CONTEXT,
    _GENERATION,
    s.integer("rows", "", "the most candidates that decode together"),
    _SHARING,
    s.text(
        "learner",
        "form of the learner's batches: each completion after a prompt of its own, or all of a "
        "prompt's after one",
        values=("independent", "shared_prompt"),
    ),
    _RECURRENCE,
)
_KEY = ("point", "rows", "sharing", "learner", "recurrence", "policy")
_PLACEMENT = s.text(
    "placement",
    "where what is kept across rounds lies; on the host it is fetched and written back each round",
    values=("device", "host", "does not fit"),
)

_TERMS = (
    s.number("prefill_s", "s", "bringing prompts' KV up to date, without corrections"),
    s.number("first_step_s", "s", "last tokens of kept prompts: one more step of the batch"),
    s.number("correction_s", "s", "low-rank corrections of stale KV"),
    s.number("decode_s", "s", "decoding steps of all candidates"),
    s.number("sampling_s", "s", "choosing tokens"),
    s.number("transfer_s", "s", "copies between host and device"),
    s.number("host_s", "s", "of the engine's calls, what lies between phases"),
    s.number("store_s", "s", "moving kept KV between host and device"),
    s.number("update_s", "s", "replacing the adapter in the weights, from the second round on"),
    s.number("learner_s", "s", "one update of the adapter on the round's completions"),
)


def _saved(basis: str) -> list[s.Column]:
    return [
        column
        for name in SAVED
        for column in (
            s.number(f"{name}_saved", "fraction", f"of the time of the {name}, against {basis}"),
            s.number(f"{name}_saved_low", "fraction", "2.5 % bound over repeats, both resampled"),
            s.number(f"{name}_saved_high", "fraction", "97.5 % bound"),
        )
    ]


CUMULATIVE_COST = s.Schema(
    "cumulative_cost",
    "Modelled time of the loop under each cache policy, by round and summed, from measured tables",
    (
        *_OPERATING,
        _POLICY,
        _LABEL,
        _ROUND,
        *_TERMS,
        s.number("round_s", "s", "the round, sum of the above"),
        s.number("cumulative_s", "s", "rounds up to this one"),
        s.number("cumulative_low_s", "s", "2.5 % bound of cumulative_s, bootstrap over repeats"),
        s.number("cumulative_high_s", "s", "97.5 % bound of cumulative_s, bootstrap over repeats"),
        *_saved("Naive at the same point, rounds up to this one"),
        s.integer("call_prompts", "", "prompts of the measured call, which is scaled to the round"),
        s.text("micro_batch", "the learner's measured update, which is scaled by its tokens"),
        s.integer("n", "", "repeats behind the price that has the fewest"),
        _PLACEMENT,
        *_MACHINE,
    ),
    key=(*_KEY, "round"),
)

POLICY_MEMORY = s.Schema(
    "policy_memory",
    "Memory that the loop needs under each cache policy, against the device's",
    (
        *_OPERATING,
        _POLICY,
        _LABEL,
        s.integer("weight_bytes", "bytes", "weights that a decoding step reads"),
        s.integer("round_kv_bytes", "bytes", "KV in use at most in the measured call of the round"),
        s.integer("kept_prompts", "", "prompts whose entries stay across rounds"),
        *(
            s.integer(f"kept_{part}_bytes", "bytes", f"of these: {meaning}")
            for part, meaning in zip(
                KEPT,
                ("KV", "hidden states at a boundary", "low-rank factors", "keys before the norm"),
                strict=True,
            )
        ),
        s.integer(
            "learner_bytes",
            "bytes",
            "at most while a micro-batch trains, with weights; 0 on a CPU, which does not tell",
        ),
        s.integer(
            "needed_bytes",
            "bytes",
            "what is kept, and weights with the round's KV or the learner, whichever is more",
        ),
        s.integer("device_bytes", "bytes", "memory of the device"),
        _PLACEMENT,
        *_MACHINE,
    ),
    key=_KEY,
)

POLICY_SUMMARY = s.Schema(
    "policy_summary",
    "Cache policies over the whole loop: what they recompute, their modelled cost and memory",
    (
        *(column for column in _OPERATING if column not in (_CONTEXT, _GENERATION)),
        _POLICY,
        _LABEL,
        s.integer("rounds", "", "rounds"),
        *_saved("Naive over all rounds"),
        *_TERMS,
        s.number("total_s", "s", "all rounds, sum of the above"),
        s.number("recompute_ratio", "fraction", "recomputed cells / all cells, all rounds"),
        s.number("stale_ratio", "fraction", "stale cells in use / all cells, all rounds"),
        s.number("mean_staleness", "updates", "updates missed, mean over cells and rounds"),
        s.integer("oldest_reuse", "updates", "age of the oldest entry that was reused"),
        s.integer("full_refreshes", "", "prefills that recompute everything"),
        s.integer("hits", "", "prefills that reuse something"),
        s.integer("misses", "", "prefills that reuse nothing"),
        s.number("kept_gb", "GB", "entries that stay across rounds"),
        s.number("needed_gb", "GB", "memory at most, see policy_memory"),
        s.number("device_gb", "GB", "memory of the device"),
        _PLACEMENT,
        s.integer("n", "", "repeats behind the price that has the fewest"),
        *_MACHINE,
    ),
    key=_KEY,
)

POLICY_BATCH1 = s.Schema(
    "policy_batch1",
    "The seed programme's accounting: every rollout decodes alone, without a learner",
    (
        _POINT,
        _CONTEXT,
        _GENERATION,
        _SHARING,
        _POLICY,
        _LABEL,
        s.integer("rounds", "", "rounds"),
        *(term for term in _TERMS if term.name not in ("store_s", "learner_s")),
        s.number("total_s", "s", "all rounds, sum of the above"),
        s.number("prefill_share", "fraction", "of one rollout: its prefill / all of it"),
        *(c for c in _saved("Naive over all rounds") if not c.name.startswith("round_")),
        s.integer("n", "", "repeats behind the price that has the fewest"),
        *_MACHINE,
    ),
    key=("point", "sharing", "policy"),
)
