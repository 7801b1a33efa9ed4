"""Plans carried out for real: the exactness oracles of P1-5.2 and the correction of P1-8.1."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.backends.forward import Forward
from ember.cache.contiguous import ContiguousCache
from ember.lora.adapter import LowRank
from ember.model.decoder import Decoder
from ember.model.families import FAMILIES
from ember.policies import execute
from ember.policies.correctable import StaleFactors
from ember.policies.execute import PolicyRunner, PromptKV, prompt_key, run_plan
from ember.policies.kinds import (
    KeepRegion,
    Naive,
    PeriodicRefresh,
    PrefixOnly,
    Salted,
    Stale,
    UpdatableKV,
    UpdateLocality,
    compose,
)
from ember.policies.plan import BadPolicy, Plan
from tests.policies.plans import compare
from tests.policies.tiny_lora import LAYERS, RANK, TOKENS, Lora, everywhere, make_decoder, prompt


def fresh(decoder: Decoder, tokens: list[int]):
    """(logits, KV) of a prefill from nothing."""
    kv = PromptKV.empty(decoder, tokens)
    return run_plan(Forward(decoder), kv, Plan.full(LAYERS)), kv


def errors(kv: PromptKV, truth: PromptKV) -> list[float]:
    """Relative L2 error of keys and values, by layer."""
    out = []
    for layer in range(LAYERS):
        pairs = zip(kv.cache.read(layer), truth.cache.read(layer), strict=True)
        out.append(max(float((a - b).norm() / b.norm()) for a, b in pairs))
    return out


def assert_exact(kv: PromptKV, truth: PromptKV, layers=range(LAYERS)) -> None:
    measured = errors(kv, truth)
    assert max((measured[layer] for layer in layers), default=0.0) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_full_plan_is_a_plain_forward(dtype):
    decoder = make_decoder(0, dtype=dtype)
    tokens = prompt()
    logits, kv = fresh(decoder, tokens)
    with torch.inference_mode():
        plain = decoder.logits(decoder(torch.tensor([tokens])))[:, -1]
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(logits, plain, atol=tolerance, rtol=0)
    assert all(kv.cache.length(layer) == TOKENS for layer in range(LAYERS))


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
@pytest.mark.parametrize("freeze", range(LAYERS + 1))
def test_restart_equals_a_fresh_prefill_when_the_layers_below_stand(model_type, freeze):
    decoder = make_decoder(1, model_type)
    lora = Lora(decoder, everywhere(freeze), seed=2)
    runner = PolicyRunner(decoder, UpdateLocality(LAYERS, freeze))
    tokens = prompt()
    runner.prefill(1, tokens)
    for round in (2, 3, 4):
        lora.step()
        runner.on_update(lora.update(round))
        done = runner.prefill(round, tokens)
        logits, truth = fresh(decoder, tokens)
        assert done.plan == Plan.restart(LAYERS, freeze)
        torch.testing.assert_close(done.logits, logits, atol=1e-12, rtol=0)
        assert_exact(done.kv, truth)


def test_an_update_below_the_boundary_costs_a_full_prefill_and_stays_exact():
    decoder = make_decoder(1)
    runner = PolicyRunner(decoder, UpdateLocality(LAYERS, 2))
    tokens = prompt()
    runner.prefill(1, tokens)
    lora = Lora(decoder, [(1, "v_proj")], seed=2)
    lora.step()
    runner.on_update(lora.update(2))
    done = runner.prefill(2, tokens)
    assert done.plan.full_refresh
    assert_exact(done.kv, fresh(decoder, tokens)[1])


def test_zero_b_changes_nothing():
    decoder = make_decoder(3)
    lora = Lora(decoder, everywhere(), seed=4)
    runner = PolicyRunner(decoder, UpdatableKV(LAYERS, RANK, 10), adapter=lora.adapter)
    tokens = prompt()
    first = runner.prefill(1, tokens)
    before = first.kv.cache.kv.clone()
    lora.step(size=0.0)
    runner.on_update(lora.update(2), lora.adapter)
    done = runner.prefill(2, tokens)
    assert done.plan.correct
    torch.testing.assert_close(done.kv.cache.kv, before, atol=1e-12, rtol=0)
    torch.testing.assert_close(done.logits, first.logits, atol=1e-12, rtol=0)


def test_an_update_of_the_last_query_leaves_all_kv_exact():
    decoder = make_decoder(5)
    lora = Lora(decoder, [(LAYERS - 1, "q_proj")], seed=6)
    tokens = prompt()
    old_logits, old = fresh(decoder, tokens)
    lora.step()
    logits, truth = fresh(decoder, tokens)
    assert not torch.allclose(logits, old_logits, atol=1e-3)  # the update did something
    assert_exact(old, truth)
    for policy in (UpdateLocality(LAYERS, LAYERS), PeriodicRefresh(LAYERS, 10)):
        decoder = make_decoder(5)
        lora = Lora(decoder, [(LAYERS - 1, "q_proj")], seed=6)
        runner = PolicyRunner(decoder, policy)
        runner.prefill(1, tokens)
        lora.step()
        runner.on_update(lora.update(2))
        done = runner.prefill(2, tokens)
        assert done.plan == Plan.last_tokens(LAYERS, TOKENS)
        assert policy.stats[-1].stale_cells == 0
        torch.testing.assert_close(done.logits, logits, atol=1e-12, rtol=0)


@pytest.mark.parametrize("first", range(LAYERS))
def test_layers_below_the_first_adapted_one_stay_exact(first):
    decoder = make_decoder(7)
    lora = Lora(decoder, everywhere(first), seed=8)
    tokens = prompt()
    _, old = fresh(decoder, tokens)
    lora.step()
    _, truth = fresh(decoder, tokens)
    assert_exact(old, truth, range(first))
    assert min(errors(old, truth)[first:]) > 1e-3


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_correction_is_exact_in_the_first_changed_layer(model_type, first):
    decoder = make_decoder(9, model_type)
    lora = Lora(decoder, everywhere(first), seed=10)
    runner = PolicyRunner(decoder, UpdatableKV(LAYERS, RANK, 100, first), adapter=lora.adapter)
    tokens = prompt()
    runner.prefill(1, tokens)
    for round in range(2, 6):
        lora.step()
        runner.on_update(lora.update(round), lora.adapter)
        done = runner.prefill(round, tokens)
        _, truth = fresh(decoder, tokens)
        assert done.plan.correct
        assert_exact(done.kv, truth, range(first + 1))


@pytest.mark.parametrize("seed", range(5))
def test_correction_leaves_less_error_than_stale_kv_above(seed):
    def run(policy):
        decoder = make_decoder(100 + seed)
        lora = Lora(decoder, everywhere(names=("k_proj", "v_proj")), seed=200 + seed)
        runner = PolicyRunner(decoder, policy, adapter=lora.adapter)
        tokens = prompt(seed)
        runner.prefill(1, tokens)
        lora.step(0.2)
        runner.on_update(lora.update(2), lora.adapter)
        return errors(runner.prefill(2, tokens).kv, fresh(decoder, tokens)[1])

    corrected = run(UpdatableKV(LAYERS, RANK, 100))
    stale = run(PeriodicRefresh(LAYERS, 100))
    assert all(better < worse for better, worse in zip(corrected, stale, strict=True))
    assert sum(corrected) < 0.9 * sum(stale)


def test_correction_over_missed_updates_is_one_correction():
    tokens, out = prompt(), []
    for visits in ([2, 3, 4], [4]):
        decoder = make_decoder(11)
        lora = Lora(decoder, [(1, "k_proj"), (1, "v_proj")], seed=12)
        runner = PolicyRunner(decoder, UpdatableKV(LAYERS, RANK, 100), adapter=lora.adapter)
        runner.prefill(1, tokens)
        for round in (2, 3, 4):
            lora.step()
            runner.on_update(lora.update(round), lora.adapter)
            if round in visits:
                kv = runner.prefill(round, tokens).kv
        out.append([torch.cat(kv.cache.read(1)) for kv in (kv, fresh(decoder, tokens)[1])])
    (often, truth), (once, _) = out
    torch.testing.assert_close(often, truth, atol=1e-12, rtol=0)
    torch.testing.assert_close(once, truth, atol=1e-12, rtol=0)


def test_recomputing_the_first_layers_helps_and_the_last_ones_hardly():
    """The axis of P1-5.2 on a real decoder: error of the logits against a fresh prefill."""
    error = {}
    for policy in (
        PeriodicRefresh(LAYERS, 100),
        KeepRegion(LAYERS, last_layers=1),
        KeepRegion(LAYERS, first_layers=1),
    ):
        total = 0.0
        for seed in range(4):
            decoder = make_decoder(300 + seed)
            lora = Lora(decoder, everywhere(names=("k_proj", "v_proj")), seed=400 + seed)
            runner = PolicyRunner(decoder, policy)
            policy.reset()
            tokens = prompt(seed)
            runner.prefill(1, tokens)
            lora.step()
            runner.on_update(lora.update(2))
            done = runner.prefill(2, tokens)
            _, truth = fresh(decoder, tokens)
            total += sum(errors(done.kv, truth))
            if policy.id == "keep_last_layers_1":
                assert_exact_but_last_layer(done.kv, truth)
        error[policy.id] = total
    assert error["keep_last_layers_1"] < error["keep_first_layers_1"] < error["refresh_100"]


def assert_exact_but_last_layer(kv: PromptKV, truth: PromptKV) -> None:
    measured = errors(kv, truth)
    assert max(measured[:-1]) < 1e-12 < measured[-1]


def test_a_shared_prefix_is_taken_from_the_rounds_first_prompt():
    decoder = make_decoder(13)
    lora = Lora(decoder, everywhere(2), seed=14)
    shared = prompt(1, 10)
    prompts = [shared + prompt(seed, 14) for seed in (2, 3, 4)]
    for policy in (
        PrefixOnly(LAYERS),
        compose(UpdateLocality(LAYERS, 2), PrefixOnly(LAYERS)),
        compose(Stale(LAYERS, 0), PrefixOnly(LAYERS)),
    ):
        runner = PolicyRunner(decoder, policy)
        for round in (1, 2, 3):
            if round > 1:
                lora.step()
                runner.on_update(lora.update(round))
            for number, tokens in enumerate(prompts):
                done = runner.prefill(round, tokens, shared_prefix=10)
                assert done.plan.prefix_tokens == (10 if number else 0)
                logits, truth = fresh(decoder, tokens)
                torch.testing.assert_close(done.logits, logits, atol=1e-12, rtol=0)
                assert_exact(done.kv, truth)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_exact_policies_equal_a_fresh_prefill_whatever_happens(data):
    """Any order of updates of any projections and of visits of prompts that share a prefix."""
    decoder = make_decoder(15)
    prefix = prompt(1, 4)
    prompts = [prefix + prompt(seed, 5) for seed in (2, 3)]
    policy = data.draw(
        st.sampled_from(
            [
                Naive(LAYERS),
                PrefixOnly(LAYERS),
                UpdateLocality(LAYERS, 2),
                UpdateLocality(LAYERS, LAYERS),
                Salted(LAYERS),
                compose(UpdateLocality(LAYERS, 2), PrefixOnly(LAYERS)),
            ]
        )
    )
    policy.reset()
    runner = PolicyRunner(decoder, policy)
    for round in range(1, 5):
        where = data.draw(st.sets(st.sampled_from(everywhere()), max_size=3))
        if round > 1 and where:
            lora = Lora(decoder, sorted(where), seed=round)
            lora.step()
            runner.on_update(lora.update(round))
        for number in data.draw(st.lists(st.integers(0, 1), max_size=3)):
            done = runner.prefill(round, prompts[number], shared_prefix=4)
            logits, truth = fresh(decoder, prompts[number])
            torch.testing.assert_close(done.logits, logits, atol=1e-10, rtol=0)
            assert max(errors(done.kv, truth)) < 1e-10
            assert policy.stats[-1].stale_cells == 0


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_the_ledger_calls_no_cell_exact_that_is_not(data):
    """Where the staleness ledger says a layer's cells are all exact, they are."""
    decoder = make_decoder(16)
    tokens = prompt(0, 8)
    policy = data.draw(
        st.sampled_from(
            [
                PeriodicRefresh(LAYERS, 3),
                KeepRegion(LAYERS, first_layers=2),
                KeepRegion(LAYERS, last_layers=2),
                KeepRegion(LAYERS, last_tokens=3),
            ]
        )
    )
    policy.reset()
    runner = PolicyRunner(decoder, policy)
    for round in range(1, 5):
        where = data.draw(st.sets(st.sampled_from(everywhere()), max_size=2))
        if round > 1 and where:
            lora = Lora(decoder, sorted(where), seed=round)
            lora.step()
            runner.on_update(lora.update(round))
        kv = runner.prefill(round, tokens).kv
        _, truth = fresh(decoder, tokens)
        for band in policy._bands[prompt_key(tokens)]:
            for layer in range(LAYERS):
                lag = policy.ledger.staleness(layer, band.weights[layer], band.inputs[layer])
                if lag == 0:
                    mine = torch.cat(kv.cache.read(layer, band.start, band.stop))
                    true = torch.cat(truth.cache.read(layer, band.start, band.stop))
                    torch.testing.assert_close(mine, true, atol=1e-10, rtol=0)


def test_kv_crosses_an_update_through_a_plan_alone(monkeypatch):
    decoder = make_decoder(17)
    lora = Lora(decoder, everywhere(), seed=18)
    runner = PolicyRunner(decoder, PeriodicRefresh(LAYERS, 10), version=lora.version)
    tokens = prompt()
    old = runner.version
    runner.prefill(1, tokens)
    lora.step()
    runner.on_update(lora.update(2))
    assert runner.version != old
    plans, real = [], execute.run_plan
    monkeypatch.setattr(execute, "run_plan", lambda *a, **k: plans.append(a[2]) or real(*a, **k))
    done = runner.prefill(2, tokens)
    assert done.version == runner.version == policy_version(runner)
    assert plans == [done.plan] == [*runner.policy.stats[-1].plans]
    assert runner.store == {prompt_key(tokens): done.kv}


def policy_version(runner: PolicyRunner) -> str:
    return runner.policy.stats[-1].version


def test_a_failed_prefill_leaves_no_kv_under_the_new_weights(monkeypatch):
    decoder = make_decoder(17)
    lora = Lora(decoder, everywhere(), seed=18)
    runner = PolicyRunner(decoder, PeriodicRefresh(LAYERS, 10))
    tokens = prompt()
    runner.prefill(1, tokens)
    lora.step()
    runner.on_update(lora.update(2))
    monkeypatch.setattr(decoder, "logits", lambda hidden: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        runner.prefill(2, tokens)
    assert len(runner.store) == 0


def test_a_refused_correction_leaves_policy_and_store_together():
    """The prompt is forgotten by both; its next prefill is a full one, and exact."""
    decoder = make_decoder(27)
    lora = Lora(decoder, everywhere(), seed=28)
    runner = PolicyRunner(decoder, UpdatableKV(LAYERS, RANK, 100), adapter=lora.adapter)
    tokens, other = prompt(), prompt(1)
    for each in (tokens, other):
        runner.prefill(1, each)
    lora.step()
    lora.a = {key: a + 0.1 for key, a in lora.a.items()}
    runner.on_update(lora.update(2), lora.adapter)
    prefills = len(runner.policy.stats)
    with pytest.raises(StaleFactors):
        runner.prefill(2, tokens)
    assert len(runner.policy.stats) == prefills  # what was not done is not counted
    assert len(runner.store) == 1
    done = runner.prefill(2, tokens)
    assert done.plan.full_refresh
    assert_exact(done.kv, fresh(decoder, tokens)[1])
    with pytest.raises(StaleFactors):  # the other prompt's KV is of the old A as before
        runner.prefill(2, other)


def test_a_failure_amid_a_round_takes_the_shared_prefix_with_it(monkeypatch):
    decoder = make_decoder(29)
    shared = prompt(1, 10)
    first, second = (shared + prompt(seed, 14) for seed in (2, 3))
    runner = PolicyRunner(decoder, PrefixOnly(LAYERS))
    runner.prefill(1, first, shared_prefix=10)
    with monkeypatch.context() as patch:
        patch.setattr(decoder, "logits", lambda hidden: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            runner.prefill(1, first, shared_prefix=10)
    done = runner.prefill(1, second, shared_prefix=10)
    assert done.plan.full_refresh
    assert runner.prefill(1, first, shared_prefix=10).plan.prefix_tokens == 10


def test_a_refused_correction_changes_nothing():
    decoder = make_decoder(30)
    lora = Lora(decoder, everywhere(), seed=31)
    kv = PromptKV.empty(decoder, prompt())
    adapter = lora.adapter
    run_plan(Forward(decoder), kv, Plan.full(LAYERS), adapter=adapter)
    before = kv.cache.kv.clone()
    moved = {key: LowRank(part.a, part.b + 1.0, part.scale) for key, part in adapter.items()}
    moved[LAYERS - 1, "v_proj"] = LowRank(
        adapter[LAYERS - 1, "v_proj"].a + 1.0, adapter[LAYERS - 1, "v_proj"].b, 0.5
    )
    with pytest.raises(StaleFactors):
        kv.cache.correct(moved)
    assert torch.equal(kv.cache.kv, before)
    assert kv.cache.correct(adapter) == 0


def test_factors_come_with_a_shared_prefix():
    """A prompt that took its prefix from another is corrected as one that was computed whole."""
    decoder = make_decoder(32)
    lora = Lora(decoder, everywhere(), seed=33)
    shared = prompt(1, 10)
    donor, taker = (PromptKV.empty(decoder, shared + prompt(seed, 14)) for seed in (2, 3))
    whole = PromptKV.empty(decoder, taker.tokens[0].tolist())
    old = lora_copy(lora)
    for kv in (donor, whole):
        run_plan(Forward(decoder), kv, Plan.full(LAYERS), adapter=old)
    plan = Plan(0, LAYERS, 10, prefix_tokens=10)
    run_plan(Forward(decoder), taker, plan, adapter=old, donor=donor)
    lora.step()
    assert taker.cache.correct(lora.adapter) == whole.cache.correct(lora.adapter) == 2 * LAYERS
    assert_exact(taker, whole)


def test_layers_left_alone_can_be_corrected_later():
    """A restart renews the layers above; those below still are of the adapter that made them."""
    decoder = make_decoder(34)
    lora = Lora(decoder, [(0, "k_proj"), (0, "v_proj")], seed=35)
    tokens = prompt()
    kv = PromptKV.empty(decoder, tokens)
    run_plan(Forward(decoder), kv, Plan.full(LAYERS), boundaries=[2], adapter=lora_copy(lora))
    lora.step()
    run_plan(Forward(decoder), kv, Plan.restart(LAYERS, 2), boundaries=[2], adapter=lora_copy(lora))
    lora.step()
    kv.cache.correct(lora_copy(lora))
    assert_exact(kv, fresh(decoder, tokens)[1], range(1))


def lora_copy(lora: Lora) -> dict:
    return {key: LowRank(part.a, part.b.clone(), part.scale) for key, part in lora.adapter.items()}


def test_memory_is_reported_by_what_it_is_for():
    decoder = make_decoder(19)
    lora = Lora(decoder, everywhere(), seed=20)
    runner = PolicyRunner(decoder, UpdatableKV(LAYERS, RANK, 10), adapter=lora.adapter)
    runner.prefill(1, prompt())
    size = runner.store[prompt_key(prompt())].bytes
    assert size["kv"] == LAYERS * 2 * 2 * TOKENS * 8 * 8
    assert size["factors"] == LAYERS * 2 * TOKENS * RANK * 8
    assert size["raw_keys"] == size["kv"] // 2
    frozen = PolicyRunner(decoder, UpdateLocality(LAYERS, 2))
    frozen.prefill(1, prompt())
    assert frozen.store[prompt_key(prompt())].bytes["hidden"] == (TOKENS + 1) * 32 * 8


def test_impossible_work_is_refused_with_a_remedy():
    decoder = make_decoder(21)
    tokens = prompt()
    _, kv = fresh(decoder, tokens)
    lora = Lora(decoder, everywhere(), seed=22)
    with pytest.raises(BadPolicy, match=r"no hidden states entering layer 2 .*boundaries=\(2,\)"):
        run_plan(Forward(decoder), kv, Plan.restart(LAYERS, 2))
    with pytest.raises(BadPolicy, match="does not fit"):
        run_plan(Forward(decoder), kv, Plan(0, LAYERS, TOKENS))
    with pytest.raises(BadPolicy, match="prefill in full"):
        run_plan(Forward(decoder), PromptKV.empty(decoder, tokens), Plan(0, LAYERS, 3))
    with pytest.raises(BadPolicy, match="shared prefix of 3"):
        run_plan(Forward(decoder), kv, Plan(0, LAYERS, 3, prefix_tokens=3))
    with pytest.raises(StaleFactors, match="without keeping factors"):
        kv.cache.correct(lora.adapter)
    with pytest.raises(BadPolicy, match="built for 6 layers"):
        PolicyRunner(decoder, Naive(6))
    with pytest.raises(BadPolicy, match="give the adapter"):
        PolicyRunner(decoder, UpdatableKV(LAYERS, RANK, 10))
    runner = PolicyRunner(decoder, UpdatableKV(LAYERS, RANK, 10), adapter=lora.adapter)
    runner.prefill(1, tokens)
    with pytest.raises(BadPolicy, match="needs the adapter of update"):
        runner.on_update(lora.update(2))
    lora.step()
    lora.a = {key: a + 0.1 for key, a in lora.a.items()}
    runner.on_update(lora.update(2), lora.adapter)
    with pytest.raises(StaleFactors, match="train B only, or refresh in full when A moves"):
        runner.prefill(2, tokens)


def test_a_stale_visit_in_between_forbids_the_correction():
    """After tokens of two different weights are mixed, no single change of B fits them all."""
    decoder = make_decoder(23)
    lora = Lora(decoder, everywhere(), seed=24)
    tokens = prompt()
    kv = PromptKV.empty(decoder, tokens)
    adapters = [lora.adapter]
    for _ in range(2):
        adapters.append(lora_copy(lora))
        lora.step()
    run_plan(Forward(decoder), kv, Plan.full(LAYERS), adapter=adapters[1])
    run_plan(Forward(decoder), kv, Plan.last_tokens(LAYERS, TOKENS), adapter=adapters[2])
    with pytest.raises(StaleFactors, match="in parts by different weights"):
        kv.cache.correct(lora.adapter)


def test_versions_chain_through_the_rounds():
    decoder = make_decoder(25)
    lora = Lora(decoder, everywhere(), seed=26)
    runner = PolicyRunner(decoder, Naive(LAYERS), version="start")
    versions = [runner.prefill(1, prompt()).version]
    for round in (2, 3):
        lora.step()
        runner.on_update(lora.update(round))
        versions.append(runner.prefill(round, prompt()).version)
    assert versions[0] == "start"
    assert all(a != b for a, b in pairwise(versions))


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_plans_run_in_the_engines_memory_as_in_their_own(model_type):
    decoder = make_decoder(36, model_type)
    memory = ContiguousCache(decoder.arch, 1, TOKENS, dtype=torch.float64)
    for forward in (Forward(decoder), Forward(decoder, memory=memory)):
        for name, off in compare(decoder, forward):
            assert off < 1e-12, name


def test_a_last_token_that_is_left_out_is_missed_by_no_later_plan():
    """Stale and corrected KV without the last token, then a full prefill: as with it."""
    decoder = make_decoder(37)
    lora = Lora(decoder, everywhere(names=("k_proj", "v_proj")), seed=38)
    tokens, memory = prompt(), ContiguousCache(decoder.arch, 1, TOKENS, dtype=torch.float64)
    runners = [
        PolicyRunner(decoder, UpdatableKV(LAYERS, RANK, 5), adapter=lora.adapter) for _ in range(2)
    ]
    for round in range(1, 8):
        left, whole = (
            runner.prefill(round, tokens, into=memory, leave_last=leave).logits
            for runner, leave in zip(runners, (True, False), strict=True)
        )
        assert (left is None) == (round not in (1, 5))
        if left is None:
            last = TOKENS - 1
            mine, other = (runner.store[prompt_key(tokens)].cache for runner in runners)
            torch.testing.assert_close(mine.segment(0, 0, last), other.segment(0, 0, last))
            assert {mine.length(layer) for layer in range(LAYERS)} == {last}
            memory.truncate(last)
            with torch.inference_mode():
                left = Forward(decoder)(torch.tensor([tokens[-1:]]), memory)
        torch.testing.assert_close(left, whole, atol=1e-12, rtol=0)
        lora.step()
        for runner in runners:
            runner.on_update(lora.update(round + 1), lora.adapter)


def test_a_policy_that_keeps_hidden_states_runs_the_last_token_itself():
    decoder = make_decoder(39)
    policy = KeepRegion(LAYERS, first_layers=LAYERS)
    runner = PolicyRunner(decoder, policy)
    for round in (1, 2):
        assert runner.prefill(round, prompt(), leave_last=True).logits is not None
