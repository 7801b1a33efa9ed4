"""What a policy's rounds cost in seconds, from measured tables alone (P1-6.1).

A prefill costs its measured time at (context, generation) in the rollout profile, times the
measured ratio of what the plan runs to a full prefill: by document in the prefix sweep for a shared
prefix, by repeat in the restart sweep for a restart at a layer, a lone last token or a correction.
From the second round on the adapter is replaced once a round, for every policy alike, at the time
measured with the base's copy on the device. Ratios are taken within a table, where both sides were
timed alternately. Decode, sampling and transfer are the profile's, for every candidate on its own.
Everything measured is resampled for the intervals; nothing is assumed: a missing measurement is an
error that names the table and the rule.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from ember.measure.statistics import bootstrap, interval
from ember.policies.plan import Plan
from ember.records.errors import EmberError

PHASES = ("prefill", "decode", "sampling", "transfer")


class MissingMeasurement(EmberError):
    """The model needs a measurement that its tables do not hold."""


@dataclass(frozen=True)
class Measured:
    """The measured tables, as data frames, and the model's depth."""

    profile: object  # rows of ROLLOUT_PROFILE
    prefix: object  # rows of PREFIX_SWEEP
    restart: object  # rows of RESTART_SWEEP
    latency: object  # rows of LORA_LATENCY
    num_layers: int


@dataclass(frozen=True)
class Point:
    """A workload: tokens of a prompt, of a candidate, and of the prefix that prompts share."""

    context: int
    generation: int
    prefix: int

    def __str__(self):
        return f"{self.context}/{self.generation}"


class Prices:
    """Seconds of one prefill, correction or rollout at a point, as bootstrap samples.

    Every price is an array (1 + resamples,): the estimate from all repeats first, then one value
    for each resample of the repeats. The same resample is used for all policies.
    """

    def __init__(self, measured: Measured, point: Point, resamples: int, seed: int):
        self.measured, self.point, self.resamples = measured, point, resamples
        self._rng = np.random.default_rng([seed, point.context, point.generation])
        self._prefix_ratio = cache(self._prefix_ratio)  # a table's ratio is sampled once
        self._restart_ratio = cache(self._restart_ratio)
        self.phases = dict(zip(PHASES, self._profile(), strict=True))
        self.update = self._update()

    def prefill(self, plan: Plan, rank: int = 0) -> np.ndarray:
        """Seconds of one prefill by `plan`; `rank`: the policy keeps factors of that rank."""
        if plan.full_refresh and not rank:
            return self.phases["prefill"]
        if plan.stop_layer < self.measured.num_layers:
            raise MissingMeasurement(
                f"cost at {self.point}: plans that stop below the top (layer {plan.stop_layer}) "
                "are not measured; leave keep_region with last_layers out of p1.policies"
            )
        if plan.prefix_tokens and plan.start_layer == 0:
            return self.phases["prefill"] * self._prefix_ratio(plan.prefix_tokens)
        rank = rank if plan.full_refresh else 0
        ratio = self._restart_ratio("recompute", plan.start_layer, plan.start_token, rank)
        return self.phases["prefill"] * ratio

    def correction(self, first_layer: int, rank: int) -> np.ndarray:
        """Seconds of correcting one prompt's KV in the layers from `first_layer` up."""
        return self.phases["prefill"] * self._restart_ratio("correct", first_layer, 0, rank)

    def _profile(self) -> np.ndarray:
        table = self.measured.profile
        point = {"context": self.point.context, "generation": self.point.generation}
        rows = _rows(table, mode="single", status="ok", **point)
        if rows.empty:
            raise MissingMeasurement(
                f"cost at {self.point}: no single-device rollout with context "
                f"{self.point.context} and generation {self.point.generation} in the table "
                "rollout_profile; add them to p1.profile and run rule profile_rollout"
            )
        times = rows[[f"{phase}_ms" for phase in PHASES]].to_numpy(float) / 1000
        return self._median(times / rows["batch"].to_numpy(float)[:, None]).T

    def _update(self) -> np.ndarray:
        """Seconds of replacing the adapter in the weights."""
        table = self.measured.latency
        kind = {"implementation": "ember", "keep": "device", "operation": "replace"}
        rows = _rows(table, phase="steady", status="ok", **kind)
        if rows.empty:
            raise MissingMeasurement(
                f"cost at {self.point}: no steady replacement of an adapter with the base kept on "
                "the device in the table lora_latency; add device to p1.lora.keeps and run rule "
                "time_lora"
            )
        return self._median(rows["ms"].to_numpy(float) / 1000)

    def _prefix_ratio(self, prefix: int) -> np.ndarray:
        table = self.measured.prefix
        rows = _rows(table, prompt_tokens=self.point.context, prefix_tokens=prefix)
        reused = rows[rows["cached"] & (rows["reused_tokens"] >= prefix)]
        plain = rows[~rows["cached"]].set_index("document")["prefill_ms"]
        cached = reused.set_index("document")["prefill_ms"]
        ratios = (cached / plain).dropna().to_numpy(float)
        if not len(ratios):
            raise MissingMeasurement(
                f"cost at {self.point}: no prefill of {self.point.context} tokens with a "
                f"shared prefix of {prefix} in the table prefix_sweep; add them to p1.prefix "
                "(prompts, prefix_fractions) and run rule sweep_prefix"
            )
        return self._median(ratios)

    def _restart_ratio(self, action: str, layer: int, token: int, rank: int) -> np.ndarray:
        part = self._restart_ms(action, layer, token, rank)
        full = self._restart_ms("recompute", 0, 0, 0)
        return self._median((part / full).dropna().to_numpy(float))

    def _restart_ms(self, action: str, layer: int, token: int, rank: int):
        table = self.measured.restart
        rows = _rows(
            table,
            context=self.point.context,
            num_layers=self.measured.num_layers,
            action=action,
            start_layer=layer,
            start_token=token,
            rank=rank,
        )
        if rows.empty:
            what = (
                f"correction of rank {rank} from layer {layer} up"
                if action == "correct"
                else f"prefill from layer {layer} of {self.measured.num_layers} and token {token} "
                f"on{f', keeping factors of rank {rank}' if rank else ''}"
            )
            raise MissingMeasurement(
                f"cost at {self.point}: no {what} at context {self.point.context} in the table "
                "restart_sweep; add the layer to p1.restart.layer_fractions or the policy to "
                "p1.policies and run rule sweep_restart"
            )
        return rows.set_index("repeat")["ms"]

    def _median(self, samples: np.ndarray) -> np.ndarray:
        """(n, ...) samples -> (1 + resamples, ...): the median, then that of each resample."""
        return bootstrap(samples, self._rng, self.resamples)


def _rows(table, **wanted):
    """The rows of a table that have these values."""
    return table[np.logical_and.reduce([table[name] == value for name, value in wanted.items()])]


def policy_cost(prices: Prices, rounds: Sequence[Mapping], *, rollouts: int) -> list[dict]:
    """Seconds of each round of one policy: rows of CUMULATIVE_COST without their labels.

    rounds: the policy's rows of POLICY_ROUNDS at the prices' point, in order. rollouts: candidates
    decoded a round.
    """
    naive = naive_cost(prices, rounds, rollouts)
    decoded = _decoded(prices, rollouts)
    cumulative = np.zeros(1 + prices.resamples)
    out = []
    for number, row in enumerate(rounds):
        prefill, correction = _round_prefill(prices, row)
        update = prices.update * (number > 0)
        total = prefill + correction + update + sum(decoded.values())
        cumulative = cumulative + total
        savings = 1 - cumulative / naive[number]
        low, high = interval(cumulative)
        savings_low, savings_high = interval(savings)
        out.append(
            {
                "round": int(row["round"]),
                "prefill_s": float(prefill[0]),
                **{f"{phase}_s": float(seconds[0]) for phase, seconds in decoded.items()},
                "correction_s": float(correction[0]),
                "update_s": float(update[0]),
                "round_s": float(total[0]),
                "cumulative_s": float(cumulative[0]),
                "cumulative_low_s": low,
                "cumulative_high_s": high,
                "savings_vs_naive": float(savings[0]),
                "savings_low": savings_low,
                "savings_high": savings_high,
            }
        )
    return out


def naive_cost(prices: Prices, rounds: Sequence[Mapping], rollouts: int) -> np.ndarray:
    """Cumulative seconds (rounds, 1 + resamples) of recomputing every prompt of every round."""
    decoded = sum(_decoded(prices, rollouts).values())
    each = [
        row["prompts"] * prices.phases["prefill"] + decoded + prices.update * (number > 0)
        for number, row in enumerate(rounds)
    ]
    return np.cumsum(each, axis=0)


def _decoded(prices: Prices, rollouts: int) -> dict[str, np.ndarray]:
    """Seconds of a round after the prefills, by phase."""
    return {phase: rollouts * prices.phases[phase] for phase in PHASES if phase != "prefill"}


def _round_prefill(prices: Prices, row: Mapping) -> tuple[np.ndarray, np.ndarray]:
    rank, frozen, layers = int(row["rank"]), int(row["frozen_layers"]), int(row["num_layers"])
    prefill = correction = np.zeros(1 + prices.resamples)
    for count, plan in plans_of(row, layers):
        prefill = prefill + count * prices.prefill(plan, rank)
        if plan.correct:
            correction = correction + count * prices.correction(frozen, rank)
    return prefill, correction


def plans_of(row: Mapping, num_layers: int) -> list[tuple[int, Plan]]:
    """The plans of a row of POLICY_ROUNDS, each with the number of prefills that follow it."""
    names = ("prefills", "start_layer", "stop_layer", "start_token", "prefix", "correct")
    columns = [[int(value) for value in row[f"plan_{name}"]] for name in names]
    out = []
    for count, start, stop, token, prefix, correct in zip(*columns, strict=True):
        full = (start, stop, token, prefix) == (0, num_layers, 0, 0)
        out.append((count, Plan(start, stop, token, prefix, bool(correct), full)))
    return out
