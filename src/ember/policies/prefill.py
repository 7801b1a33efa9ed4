"""Prefills by a cache policy: rounds of rollouts with real reuse (P1-5).

prefill = PolicyPrefill(PolicyRunner(decoder, policy))
engine = Engine(decoder, capacity=4096, prefill=prefill, weights_version=prefill.runner.version)
prefill.begin(round, shared_prefix=512)
engine.generate(prompts, sampling)
prefill.runner.on_update(update)  # the weights have changed in place
engine.set_weights_version(update.version)
"""

from collections.abc import Sequence

from torch import Tensor

from ember.backends.forward import Forward
from ember.cache.contiguous import ContiguousCache
from ember.engine.prefill import Phase, PlainPrefill
from ember.policies.execute import PolicyRunner
from ember.policies.plan import BadPolicy


class PolicyPrefill(PlainPrefill):
    """A prompt's KV outlives the round and is updated as the policy plans."""

    def __init__(self, runner: PolicyRunner):
        self.runner = runner
        self.begin(1)

    def begin(self, round: int, *, shared_prefix: int = 0) -> None:
        """Prompts from now on belong to a round, and share their first `shared_prefix` tokens."""
        self._round, self._shared_prefix = round, shared_prefix

    def fill(
        self, prompt: Sequence[int], cache: ContiguousCache, forward: Forward, phase: Phase
    ) -> tuple[Tensor | None, int]:
        """Phases: correction, prefill. Where a plan is to run the last token alone, over kept KV,
        that is left to the rows (logits None), but by policies that keep hidden states."""
        if self.version != self.runner.version:
            raise BadPolicy(
                f"the engine's weights are of version {self.version!r}, the policy's of "
                f"{self.runner.version!r}.\nCall engine.set_weights_version(runner.version) after "
                "runner.on_update."
            )
        done = self.runner.prefill(
            *(self._round, prompt, self._shared_prefix),
            forward=forward,
            into=cache,
            leave_last=True,
            phase=phase,
        )
        return done.logits, done.plan.start_token
