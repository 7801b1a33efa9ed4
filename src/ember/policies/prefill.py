"""An engine whose prefill follows a cache policy: rounds of rollouts with real reuse (P1-5)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ember.backends.forward import Prefill
from ember.backends.sampling import SamplingParams
from ember.cache.contiguous import ContiguousCache
from ember.engine.engine import Completion, Engine
from ember.measure.clock import PhaseClock
from ember.model.decoder import Decoder
from ember.policies.execute import Adapter, PolicyRunner
from ember.policies.plan import Update
from ember.policies.policy import CachePolicy


class PolicyEngine(Engine):
    """Engine and policy in one: a prompt's KV outlives the round and is updated as planned.

    Candidates share the prompt's KV; every sampled token records the version of the weights.
    """

    def __init__(
        self,
        decoder: Decoder,
        policy: CachePolicy,
        *,
        capacity: int,
        version: str = "base",
        adapter: Adapter | None = None,
        graphs: bool | None = None,
    ):
        super().__init__(decoder, capacity=capacity, weights_version=version, graphs=graphs)
        self.runner = PolicyRunner(decoder, policy, version=version, adapter=adapter)
        self._round, self._shared_prefix = 1, 0

    def on_update(self, update: Update, adapter: Adapter | None = None) -> None:
        """The decoder's weights have changed in place; `adapter` is their low-rank part now."""
        self.runner.on_update(update, adapter)
        self.set_weights_version(update.version)

    def rollout(
        self,
        round: int,
        prompts: Sequence[Sequence[int]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        num_candidates: int | None = None,
        *,
        shared_prefix: int = 0,
        clock: PhaseClock | None = None,
    ) -> list[list[Completion]]:
        """As `generate`, in a round of the policy. The clock's phase prefill is the plans' work."""
        self._round, self._shared_prefix = round, shared_prefix
        return self.generate(prompts, sampling_params, num_candidates, clock=clock)

    def _prefill(
        self, prefill: Prefill, prompts: list[Sequence[int]], cache: ContiguousCache, phase
    ) -> tuple[Tensor, list[int]]:
        """Engine's seam: fills the empty `cache` (one row a prompt) by the policy's plans.

        `prefill`, the engine's own, is not used: plans restart in the middle of the layers.
        """
        logits, reused = [], []
        with phase("prefill"):
            for row, prompt in enumerate(prompts):
                done = self.runner.prefill(self._round, prompt, self._shared_prefix)
                place = cache.rows(row, row + 1)
                for layer in cache.layers:
                    place.write(layer, 0, *done.kv.cache.read(layer))
                logits.append(done.logits)
                reused.append(done.plan.start_token)
        return torch.cat(logits), reused
