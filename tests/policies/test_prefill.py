"""Prefills by a policy: rollouts over rounds with real reuse equal those without."""

from itertools import chain

import pytest
import torch

from ember.backends.sampling import SamplingParams
from ember.engine.engine import Engine
from ember.measure.clock import PhaseClock
from ember.policies.execute import PolicyRunner
from ember.policies.kinds import (
    Naive,
    PeriodicRefresh,
    PrefixOnly,
    Salted,
    UpdatableKV,
    UpdateLocality,
    compose,
)
from ember.policies.plan import BadPolicy
from ember.policies.prefill import PolicyPrefill
from tests.policies.tiny_lora import LAYERS, RANK, Lora, everywhere, make_decoder, prompt

SAMPLING = SamplingParams(max_tokens=6, temperature=1.0, seed=3)


def engine_of(decoder, policy) -> Engine:
    return Engine(decoder, capacity=32, prefill=PolicyPrefill(PolicyRunner(decoder, policy)))


def update(engine, change) -> None:
    engine.prefill.runner.on_update(change)
    engine.set_weights_version(change.version)


@pytest.mark.parametrize(
    "policy",
    [
        Naive(LAYERS),
        PrefixOnly(LAYERS),
        UpdateLocality(LAYERS, 2),
        Salted(LAYERS),
        compose(UpdateLocality(LAYERS, 2), PrefixOnly(LAYERS)),
    ],
    ids=lambda policy: policy.id,
)
def test_exact_policies_roll_out_what_a_plain_engine_does(policy):
    decoder = make_decoder(30, dtype=torch.float32)
    lora = Lora(decoder, everywhere(2), seed=31)
    policy.reset()
    engine = engine_of(decoder, policy)
    shared = prompt(1, 8)
    prompts = [shared + prompt(seed, 8) for seed in (2, 3, 4)]
    versions = []
    for round in (1, 2, 3):
        if round > 1:
            lora.step()
            update(engine, lora.update(round))
        engine.prefill.begin(round, shared_prefix=8)
        done = engine.generate(prompts, SAMPLING, num_candidates=2)
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
    engine = engine_of(decoder, policy)
    prompts = [prompt(5, 16)]
    engine.generate(prompts, SAMPLING)
    lora.step()
    update(engine, lora.update(2))
    clock = PhaseClock("cpu")
    engine.prefill.begin(2)
    [[done]] = engine.generate(prompts, SAMPLING, clock=clock)
    [[plain]] = Engine(decoder, capacity=32).generate(prompts, SAMPLING)
    assert done.cached_tokens == 15
    assert done.logprobs[0] != pytest.approx(plain.logprobs[0], abs=1e-3)
    assert policy.stats[1].stale_cells > 0
    assert {"prefill", "decode", "sampling"} <= set(clock.times_ms())


class Whole(PolicyPrefill):
    """Leaves no token to the rows."""

    def fill(self, prompt, cache, forward, phase):
        logits, cached = super().fill(prompt, cache, forward, phase)
        if logits is None:
            logits = forward(torch.tensor([prompt[-1:]]), cache)
        return logits, cached


@pytest.mark.parametrize("backend", ["compiled", "eager"])
@pytest.mark.parametrize("policy", [PeriodicRefresh(LAYERS, 3), UpdatableKV(LAYERS, RANK, 3)])
def test_rows_run_a_kept_prompts_last_token_as_the_prefill_would(policy, backend):
    found, prompts = [], [prompt(5, 16), prompt(6, 3), prompt(7, 1)]
    for strategy in (PolicyPrefill, Whole):
        decoder = make_decoder(36, dtype=torch.float32)
        lora = Lora(decoder, everywhere(names=("k_proj", "v_proj")), seed=37)
        policy.reset()
        runner = PolicyRunner(decoder, policy, adapter=lora.adapter)
        engine = Engine(decoder, capacity=32, prefill=strategy(runner), backend=backend, max_rows=5)
        for round in range(1, 6):
            engine.prefill.begin(round)
            done = engine.generate(prompts, SAMPLING, num_candidates=3)
            stats = engine.last_stats
            reuses = round not in (1, 3)
            assert stats.kept_prompts == (2 if reuses and strategy is PolicyPrefill else 0)
            assert (stats.correction_ms > 0) == (reuses and policy.keeps_factors)
            found.append(done)
            lora.step(0.1)
            runner.on_update(lora.update(round + 1), lora.adapter)
            engine.set_weights_version(runner.version)
    for mine, theirs in zip(found[:5], found[5:], strict=True):
        for one, other in zip(chain(*mine), chain(*theirs), strict=True):
            assert one.tokens == other.tokens
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
            assert one.cached_tokens == other.cached_tokens


def test_weights_that_only_one_of_both_was_told_of_are_refused():
    decoder = make_decoder(34, dtype=torch.float32)
    lora = Lora(decoder, everywhere(), seed=35)
    engine = engine_of(decoder, Naive(LAYERS))
    lora.step()
    engine.prefill.runner.on_update(lora.update(2))
    with pytest.raises(BadPolicy, match="set_weights_version"):
        engine.generate([prompt(5, 16)], SAMPLING)
