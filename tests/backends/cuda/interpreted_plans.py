"""A policy's plans in kernels against the eager decoder, and rollouts by policies on them."""

import pytest

from ember.backends.forward import Forward
from ember.backends.packing import PackedDecoder
from ember.backends.sampling import SamplingParams
from ember.cache.contiguous import ContiguousCache
from ember.engine.engine import Engine
from ember.policies.execute import PolicyRunner
from ember.policies.kinds import PeriodicRefresh, UpdatableKV, UpdateLocality
from ember.policies.prefill import PolicyPrefill
from tests.backends.cuda.interpreted_step import few_programs  # noqa: F401, a fixture for all
from tests.policies.plans import compare, copied
from tests.policies.tiny_lora import Lora
from tests.tiny import ARCHITECTURES, wild

SIZES = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_layers": 4,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 32,
    "vocab_size": 50,
}


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_plan(model_type):
    heads = {"num_kv_heads": 2} if model_type == "gpt_neox" else {}
    decoder = wild(model_type, **SIZES | heads)
    memory = ContiguousCache(decoder.arch, 1, 20)
    forward = Forward(decoder, weights=PackedDecoder(decoder), memory=memory)
    for name, off in compare(decoder, forward):
        assert off < 1e-4, name


@pytest.mark.parametrize("name", ["stale", "corrected", "locality"])
def test_a_policy_rolls_out_alike_in_kernels_and_eagerly(name):
    found, options = [], SamplingParams(max_tokens=3)
    prompts = [[1, 2, 3, 4, 5, 6], [7, 8, 9]]
    for backend in ("kernels", "eager"):
        decoder = wild("qwen3", **SIZES | {"num_layers": 2})
        first = 1 if name == "locality" else 0
        keys = [(layer, key) for layer in range(first, 2) for key in ("k_proj", "v_proj")]
        lora = Lora(decoder, keys, seed=5)
        policy = {
            "stale": PeriodicRefresh(2, 4),
            "corrected": UpdatableKV(2, 4, 4),
            "locality": UpdateLocality(2, 1),
        }[name]
        policy.reset()
        runner = PolicyRunner(decoder, policy, adapter=copied(lora))
        engine = Engine(decoder, capacity=16, prefill=PolicyPrefill(runner), backend=backend)
        rounds = []
        for round in (1, 2, 3):
            engine.prefill.begin(round)
            rounds.append(engine.generate(prompts, options, 2))
            kept = engine.last_stats.kept_prompts
            assert kept == (2 if round > 1 and name != "locality" else 0)
            assert (engine.last_stats.correction_ms > 0) == (round > 1 and name == "corrected")
            lora.step(0.2)
            runner.on_update(lora.update(round + 1), copied(lora))
            engine.set_weights_version(runner.version)
        found.append([c for row in rounds for completions in row for c in completions])
    for mine, theirs in zip(*found, strict=True):
        assert mine.tokens == theirs.tokens
        assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-3)
        assert mine.cached_tokens == theirs.cached_tokens
