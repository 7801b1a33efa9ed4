"""What a policy's rounds cost at the loop's operating point, from measured tables alone (P1-6.1).

A round is one batched call of the engine for all candidates, and one update by the learner. Its
prefills cost what the restart sweep measured for each plan through the engine; decode, sampling and
transfer what the batched rollout took with so many rows; the adapter's switch what it took in
place; the learner its measured time a token. Where a plan leaves the last token to the rows' first
decode step, it costs one more step of the batch. Times are absolute: nothing is a ratio to another
table's time. Everything measured is resampled for the intervals, once for all policies, so that
savings are paired. A missing measurement is an error that names the table, the point and the rule.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from zlib import crc32

import numpy as np

from ember.measure.statistics import bootstrap, interval
from ember.policies.plan import Fill, Plan
from ember.records.errors import EmberError

PREFILL = ("prefill", "first_step", "correction")
PHASES = ("decode", "sampling", "transfer")
ROLLOUT = (*PREFILL, *PHASES, "host", "store")
TERMS = (*ROLLOUT, "update", "learner")
SAVED = {"prefill": PREFILL, "rollout": ROLLOUT, "round": TERMS}
"""What savings are taken of, as sums of terms."""
KEPT = ("kv", "hidden", "factor", "raw_key")


class MissingMeasurement(EmberError):
    """The model needs a measurement that its tables do not hold."""


@dataclass(frozen=True)
class Measured:
    """The measured tables, as data frames, and the model's depth."""

    rollout: object  # rows of ROLLOUT_THROUGHPUT
    restart: object  # rows of RESTART_SWEEP
    store: object  # rows of RESTART_STORE
    latency: object  # rows of LORA_LATENCY
    learner: object  # rows of LEARNER
    num_layers: int


@dataclass(frozen=True)
class Loop:
    """A workload and how it runs: tokens of a prompt, of a candidate and of the prefix that prompts
    share; prompts and candidates a round; rows that decode together. `sharing`: candidates share
    their prompt's KV, or each is a request of its own. `learner`: the form of its batches."""

    context: int
    generation: int
    prefix: int
    prompts: int
    candidates: int
    rows: int
    sharing: str = "shared"
    learner: str = "shared_prompt"
    recurrence: int = 1

    @property
    def point(self) -> str:
        return f"{self.context}/{self.generation}"

    @property
    def requests_each(self) -> int:
        """Prefill requests of a prompt."""
        return 1 if self.sharing == "shared" else self.candidates

    @property
    def requests(self) -> int:
        """Prefill requests of a round."""
        return self.prompts * self.requests_each

    @property
    def learner_tokens(self) -> int:
        """Tokens that the learner runs in a round: each completion after a prompt of its own, or
        all of a prompt's after one."""
        prompts = self.prompts * (self.candidates if self.learner == "independent" else 1)
        return prompts * self.context + self.prompts * self.candidates * self.generation

    def __str__(self):
        return f"{self.point}, {self.rows} rows, {self.sharing}"


class Prices:
    """Seconds and bytes at an operating point; seconds as bootstrap samples.

    Every price is an array (1 + resamples,): the estimate from all repeats first, then one value
    for each resample of the repeats, drawn from the seed and what is priced: the same for all
    policies and operating points.
    """

    def __init__(self, measured: Measured, loop: Loop, resamples: int, seed: int):
        self.measured, self.loop, self.resamples, self._seed = measured, loop, resamples, seed
        self.fewest = 10**9  # repeats that a price was taken from
        self.fill = cache(self.fill)
        self.learner = cache(self.learner)

    def fill(self, work: Fill) -> tuple[np.ndarray, np.ndarray, bool]:
        """Seconds of prefill and of correction of one prompt, and whether they give its logits; if
        not, its last token is the first step of its rows."""
        rows = self._fills(work)
        times = rows[["prefill_ms", "correction_ms"]].to_numpy(float) / 1000
        prefill, correction = self._sampled(f"{self.loop.context} {work}", times).T
        return prefill, correction, bool(rows["logits"].all())

    def kept_bytes(self, work: Fill) -> dict[str, int]:
        """Bytes that stay with a prompt after this work, by what they are."""
        rows = self._fills(work)
        return {part: int(rows[f"kept_{part}_bytes"].median()) for part in KEPT}

    @cached_property
    def phases(self) -> dict[str, np.ndarray]:
        """Seconds of all candidates of a round beside their prefills, by phase; host: what of a
        call lies between phases."""
        rows, key = self.calls, f"rollout {self.loop.point} {self.loop.rows} {self._candidates}"
        return self._by_phase(rows, rows["prompts"] * rows["candidates"], key)

    @property
    def _candidates(self) -> int:
        """Of a prompt in a call: alone where candidates are requests of their own."""
        return self.loop.candidates if self.loop.sharing == "shared" else 1

    def _by_phase(self, rows, rollouts, key: str) -> dict[str, np.ndarray]:
        times = rows[[f"{phase}_ms" for phase in PHASES]].copy()
        times["host"] = (rows["total_ms"] - rows["prefill_ms"] - times.sum(axis=1)).clip(lower=0)
        scale = self.loop.prompts * self.loop.candidates / rollouts / 1000
        times = self._sampled(key, times.mul(scale, axis=0).to_numpy(float))
        return dict(zip((*PHASES, "host"), times.T, strict=True))

    @cached_property
    def calls(self):
        """Measured calls of the engine at the operating point: of several, the largest."""
        loop, candidates = self.loop, self._candidates
        point = {"context": loop.context, "generation": loop.generation, "rows": loop.rows}
        rows = _rows(self.measured.rollout, **point, candidates=candidates)
        if rows.empty:
            raise MissingMeasurement(
                f"cost at {loop}: no call with context {loop.context}, generation "
                f"{loop.generation}, {loop.rows} rows and {candidates} candidates in the table "
                "rollout_throughput; add it to p1.rollout.points and run rule time_rollouts"
            )
        rows = rows[rows["prompts"] == rows["prompts"].max()]
        return rows[rows["prefix"] == rows["prefix"].min()]

    @property
    def step(self) -> np.ndarray:
        """Seconds of one more step of all rows, for each prefill request of the round."""
        return self.phases["decode"] / max(1, self.loop.generation - 1) / self.loop.requests

    @cached_property
    def update(self) -> np.ndarray:
        """Seconds of replacing the adapter in the weights."""
        kind = {"implementation": "ember", "keep": "device", "operation": "replace"}
        rows = _rows(self.measured.latency, status="ok", **kind)
        if rows.empty:
            raise MissingMeasurement(
                f"cost at {self.loop}: no replacement of an adapter with the base kept on "
                "the device in the table lora_latency; add device to p1.lora.keeps and run rule "
                "time_lora"
            )
        return self._sampled("update", rows["ms"].to_numpy(float) / 1000)

    def learner(self, frozen_layers: int) -> np.ndarray:
        """Seconds of one update on the round's completions: a micro-batch's time, scaled."""
        rows = self._micro_batches(frozen_layers)
        seconds = rows["ms"] / 1000 / rows["tokens"] * self.loop.learner_tokens
        key = f"learner {self.loop.point} {self.loop.learner} {frozen_layers}"
        return self._sampled(key, seconds.to_numpy(float))

    def learner_bytes(self, frozen_layers: int) -> int:
        """Bytes at most while a micro-batch is trained, weights included; 0: not known."""
        found = self._micro_batches(frozen_layers)["peak_gb"].dropna()
        return int(1e9 * max(found, default=0))

    @property
    def micro_batch(self) -> str:
        """What the learner's time is scaled from."""
        return self._micro_batches(0)["point"].iloc[0]

    def store(self, to_host: float, to_device: float) -> np.ndarray:
        """Seconds of moving so many bytes, one after the other and beside nothing else."""
        rates = self.measured.store[["to_host_gb_s", "to_device_gb_s"]].to_numpy(float)
        rates = self._sampled("store", rates)
        return to_host / rates[:, 0] / 1e9 + to_device / rates[:, 1] / 1e9

    def _micro_batches(self, frozen_layers: int):
        """Updates with these prompts: of several lengths of completions the nearest, of several
        micro-batches the largest."""
        loop, what = self.loop, {"frozen_layers": frozen_layers}
        what |= {"context": loop.context, "form": loop.learner}
        rows = _rows(self.measured.learner, **what)
        if rows.empty:
            raise MissingMeasurement(
                f"cost at {loop}: no update of the form {loop.learner} with context "
                f"{loop.context} and {frozen_layers} frozen layers in the table learner; add them "
                "to p1.learner and run rule time_updates"
            )
        apart = (rows["generation"] - loop.generation).abs()
        rows = rows[apart == apart.min()]
        return rows[rows["tokens"] == rows["tokens"].max()]

    def _fills(self, work: Fill):
        rows = _rows(
            self.measured.restart,
            context=self.loop.context,
            num_layers=self.measured.num_layers,
            **vars(work),
        )
        if rows.empty:
            raise MissingMeasurement(
                f"cost at {self.loop}: no {_words(work, self.measured.num_layers)} at context "
                f"{self.loop.context} in the table restart_sweep; add the policy to p1.policies "
                "and the point to p1.rounds.points and run rule sweep_restart"
            )
        return rows

    def _sampled(self, key: str, samples: np.ndarray) -> np.ndarray:
        """(n, ...) samples -> (1 + resamples, ...): the median, then that of each resample."""
        self.fewest = min(self.fewest, len(samples))
        rng = np.random.default_rng([self._seed, crc32(key.encode())])
        return bootstrap(samples, rng, self.resamples)


class SinglePrices(Prices):
    """The seed programme's accounting: every rollout decodes alone, as the profile measured it."""

    @cached_property
    def phases(self) -> dict[str, np.ndarray]:
        loop = self.loop
        point = {"context": loop.context, "generation": loop.generation}
        rows = _rows(self.measured.rollout, mode="single", status="ok", **point)
        if rows.empty:
            raise MissingMeasurement(
                f"cost at {loop.point}: no rollout on one device with context {loop.context} and "
                f"generation {loop.generation} in the table rollout_profile; add them to "
                "p1.profile and run rule profile_rollout"
            )
        return self._by_phase(rows, rows["batch"], f"profile {loop.point}")

    def learner(self, frozen_layers: int) -> np.ndarray:
        """There is none in this accounting."""
        return np.zeros(1 + self.resamples)

    def prefill_share(self, num_layers: int) -> float:
        """Of one rollout: a full prefill's time against all of it."""
        prefill = self.fill(Plan.full(num_layers).fill(self.loop.context, 0, 0, ()))[0][0]
        rollouts = self.loop.prompts * self.loop.candidates
        return float(prefill / (prefill + sum(self.phases.values())[0] / rollouts))


def _rows(table, **wanted):
    """The rows of a table that have these values."""
    return table[np.logical_and.reduce([table[name] == value for name, value in wanted.items()])]


def _words(work: Fill, num_layers: int) -> str:
    if work.correct:
        return f"correction of rank {work.rank} from layer {work.corrected_from} up"
    found = f"prefill of layers {work.start_layer} to {work.stop_layer} of {num_layers} from token "
    found += str(work.start_token)
    if work.prefix:
        found += f" after a shared prefix of {work.prefix}"
    if work.rank:
        found += f", keeping factors of rank {work.rank}"
    return found + (f", keeping what enters layer {work.boundary}" if work.boundary else "")


def memory(prices: Prices, history: Sequence[Mapping]) -> dict:
    """Bytes that a policy needs on the device, by what they are, against what there is.

    history: the policy's rows of POLICY_ROUNDS. What it keeps across rounds is that of all prompts
    that come again; it lies on the device if it fits beside the engine's weights and the round's KV
    and beside the learner at its most, whichever is more, else on the host if that has room and the
    way there was measured.
    """
    loop, first = prices.loop, history[0]
    kept, prompts = dict.fromkeys(KEPT, 0), 0
    if any(age > 0 for row in history for age in row["ages"]):
        [(_, plan), *_] = plans_of(first)
        prompts = loop.prompts * min(loop.recurrence, len(history))
        each = prices.kept_bytes(_work(plan, loop, first))
        kept = {part: prompts * size for part, size in each.items()}
    sizes = prices.measured.store.iloc[0]
    weights, round_kv = (int(prices.calls[f"{x}_bytes"].median()) for x in ("weight", "peak_kv"))
    learner = prices.learner_bytes(int(first["frozen_layers"]))
    beside, total = max(weights + round_kv, learner), sum(kept.values())
    placement = "does not fit"
    if beside + total <= sizes["device_bytes"]:
        placement = "device"
    elif (
        beside <= sizes["device_bytes"]
        and total <= sizes["host_bytes"]
        and (prices.measured.store["to_host_gb_s"].notna().all())
    ):
        placement = "host"
    return {
        "weight_bytes": weights,
        "round_kv_bytes": round_kv,
        "kept_prompts": prompts,
        **{f"kept_{part}_bytes": size for part, size in kept.items()},
        "learner_bytes": learner,
        "needed_bytes": beside + total,
        "device_bytes": int(sizes["device_bytes"]),
        "placement": placement,
    }


def policy_cost(
    prices: Prices, history: Sequence[Mapping], placement: str = "device"
) -> list[dict]:
    """Seconds of each round of one policy: rows of CUMULATIVE_COST without their labels.

    history: the policy's rows of POLICY_ROUNDS at the prices' operating point, in order. placement:
    where what it keeps lies (see `memory`).
    """
    naive = _naive(prices.loop, int(history[0]["num_layers"]))
    totals = {name: np.zeros((2, 1 + prices.resamples)) for name in SAVED}
    cumulative, out = 0.0, []
    for number, row in enumerate(history):
        mine = round_terms(prices, row, first=number == 0, placement=placement)
        theirs = round_terms(prices, naive, first=number == 0)
        cumulative = cumulative + sum(mine.values())
        found = {f"{term}_s": float(seconds[0]) for term, seconds in mine.items()}
        found["round_s"] = float(sum(mine.values())[0])
        found["cumulative_s"] = float(cumulative[0])
        found["cumulative_low_s"], found["cumulative_high_s"] = interval(cumulative)
        for name, terms in SAVED.items():
            totals[name] += [sum(arm[term] for term in terms) for arm in (mine, theirs)]
            saved = 1 - totals[name][0] / totals[name][1]
            found[f"{name}_saved"] = float(saved[0])
            found[f"{name}_saved_low"], found[f"{name}_saved_high"] = interval(saved)
        out.append({"round": int(row["round"])} | found)
    return out


def round_terms(
    prices: Prices, row: Mapping, *, first: bool, placement: str = "device"
) -> dict[str, np.ndarray]:
    """Seconds of one round by term, each (1 + resamples,). `first`: nothing was updated yet."""
    nothing = np.zeros(1 + prices.resamples)
    out = dict.fromkeys(TERMS, nothing) | prices.phases
    for count, plan in plans_of(row):
        prefill, correction, logits = prices.fill(_work(plan, prices.loop, row))
        out["prefill"] = out["prefill"] + count * prefill
        out["correction"] = out["correction"] + count * correction
        if not logits:
            out["first_step"] = out["first_step"] + count * prices.step
    if placement == "host":
        out["store"] = prices.store(*_traffic(prices, row))
    if not first:
        out["update"] = prices.update
    out["learner"] = prices.learner(int(row["frozen_layers"]))
    return out


def _traffic(prices: Prices, row: Mapping) -> tuple[float, float]:
    """Bytes of a round to the host and to the device: of an entry that is reused what lies below a
    restart, or all of it, is fetched once; of what changes, what a later round reads goes back."""
    loop, layers, written, renewed = prices.loop, int(row["num_layers"]), 0.0, 0
    kept = prices.kept_bytes(_work(Plan.full(layers), loop, row))
    if below := max(row["boundaries"], default=0):
        kept["kv"] *= below / layers
    for count, plan in plans_of(row):
        if plan.renews:
            renewed += count
            written += count * sum(kept.values())
        elif plan.correct:
            written += count * (kept["kv"] + kept["raw_key"])
        elif not below:
            written += count * kept["kv"] * (loop.context - plan.start_token) / loop.context
    return written, (loop.prompts - renewed) * sum(kept.values())


def _naive(loop: Loop, num_layers: int) -> dict:
    """A round of recomputing every prompt, once where its candidates can find it, as a row of
    POLICY_ROUNDS."""
    computed = loop.requests if loop.sharing == "separate" else loop.prompts
    plans = {Plan.full(num_layers): computed}
    if loop.requests > computed:
        plans[Plan.last_tokens(num_layers, loop.context)] = loop.requests - computed
    names = {"num_layers": num_layers, "rank": 0, "frozen_layers": 0, "boundaries": []}
    return names | plan_columns(plans.items())


def _work(plan: Plan, loop: Loop, row: Mapping) -> Fill:
    boundaries = [int(layer) for layer in row["boundaries"]]
    return plan.fill(loop.context, int(row["rank"]), int(row["frozen_layers"]), boundaries)


def plan_columns(plans: Iterable[tuple[Plan, int]]) -> dict[str, list[int]]:
    """Plans and the number of prefills that follow each, as columns of POLICY_ROUNDS."""
    plans = list(plans)
    return {
        "plan_prefills": [count for _, count in plans],
        "plan_start_layer": [plan.start_layer for plan, _ in plans],
        "plan_stop_layer": [plan.stop_layer for plan, _ in plans],
        "plan_start_token": [plan.start_token for plan, _ in plans],
        "plan_prefix": [plan.prefix_tokens for plan, _ in plans],
        "plan_correct": [int(plan.correct) for plan, _ in plans],
    }


def plans_of(row: Mapping) -> list[tuple[int, Plan]]:
    """The inverse of `plan_columns`: numbers of prefills and the plan that they follow."""
    names = ("prefills", "start_layer", "stop_layer", "start_token", "prefix", "correct")
    columns = [[int(value) for value in row[f"plan_{name}"]] for name in names]
    out = []
    for count, *place, correct in zip(*columns, strict=True):
        full = place == [0, int(row["num_layers"]), 0, 0]
        out.append((count, Plan(*place, bool(correct), full)))
    return out
