"""Counts what a policy recomputes over many rounds, without running a model (P1-5.3).

The same policy objects drive the engine; here every plan is taken as carried out. No torch.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ember.policies.plan import BadPolicy, Request, Update
from ember.policies.policy import CachePolicy, RoundStats


@dataclass(frozen=True)
class Workload:
    """The prefills of one round: `prompts` prompts, each asked for by `requests_each` requests (its
    candidates, where they do not share its KV). A prompt comes in every `recurrence`th round: there
    are so many sets of prompts, which take turns."""

    prompts: int
    prompt_tokens: int
    shared_prefix: int = 0
    requests_each: int = 1
    recurrence: int = 1

    def __post_init__(self):
        for what in ("prompts", "requests_each", "recurrence"):
            if getattr(self, what) < 1:
                raise BadPolicy(f"workload: {what} is {getattr(self, what)}; set it to 1 or more")

    def requests(self, round: int) -> list[tuple[Request, int]]:
        """The prefills of a round, in order, and how many each stands for.

        A round's first prompt may do work for the others (the shared prefix); the others have equal
        histories, so the second stands for all of them, and a prompt's second request for its
        further ones.
        """
        out = []
        for place, count in enumerate((1, self.prompts - 1)):
            prompt = f"{round % self.recurrence}-{place}"
            request = Request(round, prompt, self.prompt_tokens, self.shared_prefix)
            out += [(request, count), (request, count * (self.requests_each - 1))]
        return [(request, count) for request, count in out if count]


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
