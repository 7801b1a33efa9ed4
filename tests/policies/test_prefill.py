"""The policy engine: rollouts over rounds with real reuse equal those without, and say by whom."""

import pytest
import torch

from ember.backends.sampling import SamplingParams
from ember.engine.engine import Engine
from ember.measure.clock import PhaseClock
from ember.policies.policy import Naive, PeriodicRefresh, PrefixOnly, UpdateLocality, compose
from ember.policies.prefill import PolicyEngine
from tests.policies.tiny_lora import LAYERS, Lora, everywhere, make_decoder, prompt

SAMPLING = SamplingParams(max_tokens=6, temperature=1.0, seed=3)


@pytest.mark.parametrize(
    "policy",
    [
        Naive(LAYERS),
        PrefixOnly(LAYERS),
        UpdateLocality(LAYERS, 2),
        compose(UpdateLocality(LAYERS, 2), PeriodicRefresh(LAYERS, 2)),
        compose(UpdateLocality(LAYERS, 2), PrefixOnly(LAYERS)),
    ],
    ids=lambda policy: policy.id,
)
def test_exact_policies_roll_out_what_a_plain_engine_does(policy):
    decoder = make_decoder(30, dtype=torch.float32)
    lora = Lora(decoder, everywhere(2), seed=31)
    policy.reset()
    engine = PolicyEngine(decoder, policy, capacity=32)
    shared = prompt(1, 8)
    prompts = [shared + prompt(seed, 8) for seed in (2, 3, 4)]
    versions = []
    for round in (1, 2, 3):
        if round > 1:
            lora.step()
            engine.on_update(lora.update(round))
        done = engine.rollout(round, prompts, SAMPLING, num_candidates=2, shared_prefix=8)
        plain = Engine(decoder, capacity=32).generate(prompts, SAMPLING, num_candidates=2)
        for mine, theirs in zip(done, plain, strict=True):
            assert [one.tokens for one in mine] == [one.tokens for one in theirs]
            for one, other in zip(mine, theirs, strict=True):
                assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
                assert one.versions == (engine.weights_version,) * 6
        versions.append(engine.weights_version)
    assert len(set(versions)) == 3
    assert [stats.prompts for stats in policy.stats] == [3, 3, 3]


def test_stale_reuse_is_real_and_recorded():
    """A policy that tolerates staleness gives other logprobs than fresh KV, and counts why."""
    decoder = make_decoder(32, dtype=torch.float32)
    lora = Lora(decoder, everywhere(), seed=33)
    policy = PeriodicRefresh(LAYERS, 10)
    engine = PolicyEngine(decoder, policy, capacity=32)
    prompts = [prompt(5, 16)]
    engine.rollout(1, prompts, SAMPLING)
    lora.step()
    engine.on_update(lora.update(2))
    clock = PhaseClock("cpu")
    [[done]] = engine.rollout(2, prompts, SAMPLING, clock=clock)
    [[plain]] = Engine(decoder, capacity=32).generate(prompts, SAMPLING)
    assert done.cached_tokens == 15
    assert done.logprobs[0] != pytest.approx(plain.logprobs[0], abs=1e-3)
    assert policy.stats[1].stale_cells > 0
    assert {"prefill", "decode", "sampling"} <= set(clock.times_ms())
