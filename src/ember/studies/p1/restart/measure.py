"""Prefill restarted at a layer, and the correction of stale KV, timed (P1-5, P1-8; for Figure 3).

`sweep_restart` times what the plans of the configured policies really do, with the executor that
carries them out: restarts from kept hidden states, a full prefill that keeps the factors of a later
correction, the lone last token that runs over stale KV, and the correction itself. Operations take
turns in an order drawn anew for each repeat, so that ratios between them are taken side by side.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ember.measure.clock import PhaseClock
from ember.measure.device import synchronize
from ember.measure.memory import require
from ember.policies.build import build_policies
from ember.studies.measured import in_order, in_turns, on_device
from ember.studies.p1.restart.tables import RESTART_SWEEP
from ember.studies.steps import makes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Operation:
    """One thing to time; the fields are those of RESTART_SWEEP."""

    context: int
    action: str
    start_layer: int
    start_token: int
    rank: int


@makes(RESTART_SWEEP)
def sweep_restart(
    *,
    model: str | Path,
    workload,
    contexts: Sequence[int],
    policies: Sequence[Mapping],
    layer_fractions: Sequence[float],
    warmup: int,
    repeats: int,
    device: str,
    dtype: str,
    seed: int,
) -> list[dict]:
    """Rows of RESTART_SWEEP: `repeats` times of each operation at each context.

    Restart layers are `layer_fractions` of the depth and those of `policies` (plain dicts, see
    `build_policies`), ranks those of the policies that correct. Corrections use a random adapter of
    all layers from the first that trains: their time does not depend on its values.
    """
    from ember.studies.p1.workload.make import read_workload

    device, decoder, about = on_device(model, device, dtype)
    about["num_layers"] = decoder.arch.num_layers
    built = build_policies(policies, decoder.arch.num_layers)
    todo = operations(contexts, layer_fractions, built)
    _require_memory(decoder, todo, device)
    prompts = {n: read_workload(workload).prompt(0, n, 0) for n in contexts}
    here = {n: [operation for operation in todo if operation.context == n] for n in contexts}
    bench = {n: Bench(decoder, prompts[n], here[n], seed) for n in contexts}
    rows = []
    name = "context {0.context}, {0.action}".format
    for turn, operation in in_turns(todo, warmup, repeats, seed, name, log):
        clock = PhaseClock(device)
        synchronize(device)
        with clock.phase("operation"):
            bench[operation.context].run(operation)
        if turn >= 0:
            ms = clock.times_ms()["operation"]
            rows.append({**vars(operation), "repeat": turn, "ms": ms, **about})
    return in_order(rows, RESTART_SWEEP)


def operations(contexts, layer_fractions, policies) -> list[Operation]:
    """What to time at each context for the policies and the sweep over restart layers."""
    depth = policies[0].num_layers
    layers = {0, depth} | {round(fraction * depth) for fraction in layer_fractions}
    layers |= {layer for policy in policies for layer in policy.boundaries}
    ranks = {(p.rank, p.frozen_layers) for p in policies if p.keeps_factors}
    out = set()
    for context in contexts:
        out |= {Operation(context, "recompute", layer, 0, 0) for layer in layers}
        out.add(Operation(context, "recompute", 0, context - 1, 0))
        for rank, first in ranks:
            out.add(Operation(context, "recompute", 0, 0, rank))
            if first < depth:
                out.add(Operation(context, "correct", first, 0, rank))
    return sorted(out, key=lambda operation: tuple(vars(operation).values()))


class Bench:
    """A prompt with everything kept that the operations start from, computed once."""

    def __init__(self, decoder, tokens: list[int], todo: Sequence[Operation], seed: int):
        from ember.backends.forward import Forward
        from ember.policies.execute import PromptKV, run_plan
        from ember.policies.plan import Plan

        self.decoder, depth = decoder, decoder.arch.num_layers
        layers = {op.start_layer for op in todo if op.action == "recompute"} - {0, depth}
        self.plain = PromptKV.empty(decoder, tokens)
        run_plan(Forward(decoder), self.plain, Plan.full(depth), boundaries=sorted(layers))
        self.corrected, self.adapters = {}, {}
        for rank in {op.rank for op in todo} - {0}:
            self.adapters[rank] = _two_adapters(decoder, rank, seed)
            kv = self.corrected[rank] = PromptKV.empty(decoder, tokens)
            run_plan(Forward(decoder), kv, Plan.full(depth), adapter=self.adapters[rank][0])

    def run(self, operation: Operation) -> None:
        """Carry out one operation."""
        from ember.backends.forward import Forward
        from ember.policies.execute import run_plan
        from ember.policies.plan import Plan

        depth, rank = self.decoder.arch.num_layers, operation.rank
        if operation.action == "correct":
            # From one adapter to the other and back: the KV does not drift over the repeats.
            one, other = self.adapters[rank]
            kv = self.corrected[rank]
            target = other if kv.cache.made_by[-1] is one else one
            kv.cache.correct(target, first_layer=operation.start_layer)
        elif rank:
            adapter = self.adapters[rank][0]
            run_plan(Forward(self.decoder), self.corrected[rank], Plan.full(depth), adapter=adapter)
        elif operation.start_token:
            run_plan(Forward(self.decoder), self.plain, Plan.last_tokens(depth, operation.context))
        else:
            run_plan(Forward(self.decoder), self.plain, Plan.restart(depth, operation.start_layer))


def _two_adapters(decoder, rank: int, seed: int) -> tuple[dict, dict]:
    """Two random adapters with the same A, for the keys and values of every layer."""
    import torch

    from ember.lora.adapter import LowRank

    generator = torch.Generator().manual_seed(seed)

    def draw(like, *shape):
        values = torch.randn(shape, generator=generator) * shape[-1] ** -0.5
        return values.to(like.device, like.dtype)

    one, other = {}, {}
    for index, layer in enumerate(decoder.layers):
        for name in ("k_proj", "v_proj"):
            weight = getattr(layer.self_attn, name).weight
            a = draw(weight, rank, weight.shape[1])
            one[index, name], other[index, name] = (
                LowRank(a, 0.01 * draw(weight, weight.shape[0], rank), 1.0) for _ in range(2)
            )
    return one, other


def _require_memory(decoder, todo: Sequence[Operation], device: str) -> None:
    """KV once, and again with half as much for raw keys for each rank; hidden at each boundary."""
    arch, size = decoder.arch, decoder.embed_tokens.weight.element_size()
    ranks = len({operation.rank for operation in todo} - {0})
    boundaries = len({operation.start_layer for operation in todo})
    for_token = arch.kv_bytes_per_token(size) * (1 + 1.5 * ranks)
    for_token += boundaries * arch.hidden_size * size
    tokens = sum({operation.context for operation in todo})
    require(int(tokens * for_token), device, "the restart sweep's KV caches")
