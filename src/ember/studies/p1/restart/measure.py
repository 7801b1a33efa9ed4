"""Prefills by plan, timed through the engine (P1-5, P1-8; for Figure 3).

`sweep_restart` times every plan that the configured policies make at the loop's workloads, by the
path that a rollout takes: an engine whose prefill strategy carries the plan out, and one token. The
plans are those that the simulator counts, so that none is without a time; beside them stand
restarts at fractions of the depth. Plans take turns in an order drawn anew for each round, as later
prompts of a round: the first has computed what they share, and stacked the adapter. What stays with
a prompt is counted where it lies. `time_store` says how fast that moves to the host.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ember.measure.clock import PhaseClock, repeat
from ember.measure.memory import require, total_bytes
from ember.policies.build import build_policies
from ember.policies.plan import Fill, Plan, Request, Update
from ember.policies.policy import CachePolicy
from ember.policies.simulator import Workload, simulate
from ember.studies.measured import in_order, in_turns, on_device
from ember.studies.p1.restart.tables import RESTART_STORE, RESTART_SWEEP
from ember.studies.steps import makes

log = logging.getLogger(__name__)

_COPIED = 2**28  # bytes of a copy between host and device


@makes(RESTART_SWEEP, RESTART_STORE)
def sweep_restart(
    *,
    model: str | Path,
    workload,
    points: Sequence[Mapping],
    rounds: int,
    policies: Sequence[Mapping],
    layer_fractions: Sequence[float],
    warmup: int,
    repeats: int,
    device: str,
    dtype: str,
    seed: int,
) -> tuple[list[dict], list[dict]]:
    """Rows of RESTART_SWEEP, `repeats` times of each plan at each context, and of RESTART_STORE.

    points: contexts and shared prefixes at which `policies` (plain dicts, see `build_policies`) are
    simulated for so many rounds. Corrections use random adapters of the layers that train: their
    time does not depend on values.
    """
    from ember.engine.engine import Engine
    from ember.studies.p1.workload.make import read_workload

    device, decoder, about = on_device(model, device, dtype)
    depth, streams = decoder.arch.num_layers, read_workload(workload)
    todo = operations(points, rounds, build_policies(policies, depth), layer_fractions)
    _require_memory(decoder, todo, device)
    capacity = max(context for context, _ in todo) + 1
    engine = Engine(decoder, capacity=capacity, max_rows=1)
    benches = {}
    for context, work in todo:
        prompts = [streams.prompt(document, context, work.prefix) for document in (0, 1)]
        benches[context, work] = Bench(engine, work, *prompts, seed)
    rows, last, place = [], None, 0
    name = "context {0[0]}, {0[1]}".format
    for turn, operation in in_turns(todo, warmup, repeats, seed, name, log):
        place, last = (place + 1 if turn == last else 0), turn
        context, work = operation
        found = benches[operation].run(device)
        if turn >= 0:
            row = {"context": context, "num_layers": depth, **vars(work)}
            rows.append(row | {"repeat": turn, "place": place} | found | about)
    return in_order(rows, RESTART_SWEEP), time_store(device, repeats, about)


def operations(
    points: Sequence[Mapping],
    rounds: int,
    policies: Sequence[CachePolicy],
    layer_fractions: Sequence[float],
) -> list[tuple[int, Fill]]:
    """(context, work) of every plan that the policies make in so many rounds, of the hit of a whole
    prompt, and of restarts at fractions of the depth."""
    depth, out = policies[0].num_layers, set()
    for point in points:
        context = point["context"]
        workload = Workload(2, context, point["prefix"])
        plans = {(plan, 0, 0, ()) for plan in (Plan.full(depth), Plan.last_tokens(depth, context))}
        for policy in policies:
            about = (getattr(policy, "rank", 0), policy.frozen_layers, policy.boundaries)
            for stats in simulate(policy, workload, rounds):
                plans |= {(plan, *about) for plan in stats.plans}
        for fraction in layer_fractions:
            layer = round(fraction * depth)
            plans.add((Plan.restart(depth, layer), 0, 0, (layer,) if layer else ()))
        out |= {(context, plan.fill(context, *about)) for plan, *about in plans}
    return sorted(out, key=lambda one: (one[0], *vars(one[1]).values()))


@dataclass(eq=False, repr=False)
class Scripted(CachePolicy):
    """Asks for the same work again and again: in full at first, and of whom a prefix is taken."""

    id = label = "scripted"

    work: Fill

    def check(self) -> None:
        work = self.work
        self.keeps_factors = work.rank > 0
        self.boundaries = (work.boundary,) if work.boundary else ()

    def plan(self, request: Request) -> Plan:
        work, new = self.work, request.prompt not in self.history.visits
        donates = work.prefix and self.history.prefix_donor(request) is None
        if donates or (new and (work.start_layer or not work.prefix)):
            return Plan.full(self.num_layers)
        return work.plan(self.num_layers)


class Bench:
    """One kind of work on one prompt, which can be carried out again and again."""

    def __init__(self, engine, work: Fill, prompt, donor, seed: int):
        from ember.policies.execute import PolicyRunner
        from ember.policies.prefill import PolicyPrefill

        self.engine, self.work, self.prompt, self.donor = engine, work, prompt, donor
        self.adapters, self.round = _two_adapters(engine.decoder, work, seed), 0
        policy = Scripted(engine.decoder.arch.num_layers, work)
        runner = PolicyRunner(engine.decoder, policy, adapter=self.adapters[0])
        self.prefill = PolicyPrefill(runner)
        self.run("cpu")  # what is to be reused

    def run(self, device: str) -> dict:
        """Carries the work out in a round of its own; columns of RESTART_SWEEP."""
        from ember.policies.execute import prompt_key

        engine, runner = self.engine, self.prefill.runner
        self.round += 1
        if self.work.correct:
            # From one adapter to the other and back: the KV does not drift over the repeats.
            layers = range(self.work.corrected_from, engine.decoder.arch.num_layers)
            update = Update(self.round, frozenset(layers), f"round {self.round}")
            runner.on_update(update, self.adapters[self.round % 2])
        engine.prefill = self.prefill
        engine.set_weights_version(runner.version)
        self.prefill.begin(self.round, shared_prefix=self.work.prefix)
        if self.work.prefix or self.work.correct:  # a round's first prompt works for the others
            self._generate(self.donor, PhaseClock(device))
        clock = PhaseClock(device)
        self._generate(self.prompt, clock)
        times = clock.times_ms()
        kept = runner.store[prompt_key(self.prompt)].bytes
        return {
            "prefill_ms": times.get("prefill", 0.0),
            "correction_ms": times.get("correction", 0.0),
            "logits": not engine.last_stats.kept_prompts,
            "kept_kv_bytes": kept["kv"],
            "kept_hidden_bytes": kept["hidden"],
            "kept_factor_bytes": kept["factors"],
            "kept_raw_key_bytes": kept["raw_keys"],
        }

    def _generate(self, prompt, clock: PhaseClock) -> None:
        from ember.backends.sampling import SamplingParams

        self.engine.generate([prompt], SamplingParams(max_tokens=1, ignore_eos=True), clock=clock)


def time_store(device: str, repeats: int, about: Mapping) -> list[dict]:
    """Rows of RESTART_STORE: copies between the device and pinned memory of the host."""
    import torch

    host = total_bytes()
    rates: dict[str, list] = dict.fromkeys(("to_host", "to_device"), [None] * repeats)
    available = host
    if device.startswith("cuda"):
        available = torch.cuda.get_device_properties(device).total_memory
        there = torch.empty(_COPIED, dtype=torch.uint8, device=device)
        here = torch.empty(_COPIED, dtype=torch.uint8, pin_memory=True)
        copies = {"to_host": lambda: here.copy_(there), "to_device": lambda: there.copy_(here)}
        for name, copy in copies.items():
            times = repeat(copy, device=device, repeats=repeats, warmup=2)
            rates[name] = [_COPIED / ms / 1e6 for ms in times]
    return [
        {
            "repeat": number,
            **{f"{name}_gb_s": rates[name][number] for name in rates},
            "device_bytes": available,
            "host_bytes": host,
            **about,
        }
        for number in range(repeats)
    ]


def _two_adapters(decoder, work: Fill, seed: int) -> tuple[dict, dict]:
    """Two drawn adapters for the keys and values of every layer, with the same A; below the first
    corrected layer the same altogether. Empty without a rank."""
    from ember.lora.adapter import LowRank, draw_adapter

    if not work.rank:
        return {}, {}
    weight, size = decoder.embed_tokens.weight, {"rank": work.rank, "alpha": work.rank}
    drawn = draw_adapter(decoder, **size, projections=("k_proj", "v_proj"), seed=seed, b_std=0.01)
    one = {key: LowRank(x.a.to(weight), x.b.to(weight), 1.0) for key, x in drawn.items()}
    moved = {key: LowRank(x.a, 2 * x.b, 1.0) for key, x in one.items()}
    return one, {key: moved[key] if key[0] >= work.corrected_from else one[key] for key in one}


def _require_memory(decoder, todo: Sequence[tuple[int, Fill]], device: str) -> None:
    """KV of each prompt and of whom it takes a prefix, raw keys, and hidden states."""
    arch, size = decoder.arch, decoder.embed_tokens.weight.element_size()
    token = arch.kv_bytes_per_token(size)
    needed = 0.0
    for context, work in todo:
        prompts = 2 if work.prefix or work.correct else 1
        each = token * (1.5 if work.rank else 1) + arch.hidden_size * size * bool(work.boundary)
        needed += prompts * context * each
    require(int(needed), device, "the restart sweep's KV caches")
