"""Counts what a policy recomputes over many rounds, without running a model (P1-5.3).

The same policy objects drive the engine; here every plan is taken as carried out. No torch.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ember.policies.plan import BadPolicy, Request, Update
from ember.policies.policy import CachePolicy, RoundStats


@dataclass(frozen=True)
class Workload:
    """The prefills of one round: `prompts` prompts, the same every round.

    Candidates that prefill on their own count as prompts here (sharing `independent`).
    """

    prompts: int
    prompt_tokens: int
    shared_prefix: int = 0

    def __post_init__(self):
        if self.prompts < 1:
            raise BadPolicy(f"workload: {self.prompts} prompts a round; simulate at least one")

    def requests(self, round: int) -> list[tuple[Request, int]]:
        """The prefills of a round, in order, and how many prompts each stands for.

        A round's first prompt may do work for the others (the shared prefix); the others have equal
        histories, so the second stands for all of them.
        """
        first, *others = [
            Request(round, str(prompt), self.prompt_tokens, self.shared_prefix)
            for prompt in range(min(self.prompts, 2))
        ]
        return [(first, 1), *((request, self.prompts - 1) for request in others)]


def simulate(
    policy: CachePolicy,
    workload: Workload,
    rounds: int,
    updates: Callable[[int], Update | None] | None = None,
) -> list[RoundStats]:
    """Statistics of rounds 1..rounds. `updates(round)` gives the update before that round, from
    round 2 on, by default of every layer but those that the policy asks the trainer to freeze. The
    policy is reset first and keeps the statistics."""
    if rounds < 1:
        raise BadPolicy(f"simulate: {rounds} rounds; simulate at least one")
    trained = frozenset(range(policy.frozen_layers, policy.num_layers))
    updates = updates or (lambda round: Update(round, trained, f"round-{round}"))
    policy.reset()
    for round in range(1, rounds + 1):
        update = updates(round) if round > 1 else None
        if update is not None:
            policy.on_update(update)
        for request, prompts in workload.requests(round):
            policy.record(request, policy.plan(request), prompts)
    return policy.stats
