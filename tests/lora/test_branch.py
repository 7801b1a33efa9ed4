"""Adapters beside the weights: the same function as merged, trainable, and removable."""

import pytest
import torch

from ember.backends.sampling import SamplingParams
from ember.engine.engine import Engine
from ember.lora.adapter import BadAdapter, draw_adapter
from ember.lora.branch import Branches, LoraLinear
from ember.lora.merge import Merger
from tests.lora.adapters import adapter_of, bits, equal_bits, logits
from tests.tiny import wild


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float32, 1e-5), (torch.bfloat16, 0.2)]
)
def test_a_branch_computes_what_merging_does(dtype, tolerance):
    decoder, merged = (wild(dtype=dtype) for _ in range(2))
    adapter = adapter_of(decoder, projections=("q_proj", "k_proj", "v_proj", "o_proj", "up_proj"))
    base, before = logits(decoder), bits(decoder)
    branches = Branches(decoder)
    branches.attach("one", adapter)
    assert torch.equal(logits(decoder), base), "attached is not yet active"
    branches.activate("one")
    Merger(merged).swap(adapter)
    assert (logits(decoder) - base).abs().max() > 0.05
    assert torch.allclose(logits(decoder), logits(merged), atol=tolerance)
    assert branches.adapter("one").hash == adapter.hash
    branches.activate(None)
    assert torch.equal(logits(decoder), base)
    assert equal_bits(decoder, before)


def test_several_are_switched_by_name_and_leave_no_trace():
    decoder = wild()
    branches, base = Branches(decoder), logits(decoder)
    adapters = {
        "one": adapter_of(decoder, 1),
        "two": adapter_of(decoder, 2, projections=("up_proj",)).only(layers=[1]),
    }
    alone = {}
    for name, adapter in adapters.items():
        fresh = wild()
        Merger(fresh).swap(adapter)
        alone[name] = logits(fresh)
        branches.attach(name, adapter)
    for name in ("two", "one", "two"):
        branches.activate(name)
        assert torch.allclose(logits(decoder), alone[name], atol=1e-5)
    assert isinstance(decoder.layers[1].mlp.up_proj, LoraLinear)
    branches.detach("two")
    assert torch.equal(logits(decoder), base)
    assert type(decoder.layers[1].mlp.up_proj) is torch.nn.Linear
    branches.detach("one")
    assert not any(isinstance(m, LoraLinear) for m in decoder.modules())
    assert list(branches) == []


def test_training_moves_the_factors_and_nothing_else():
    decoder = wild()
    before = bits(decoder)
    for parameter in decoder.parameters():
        parameter.requires_grad_(False)
    branches = Branches(decoder)
    branches.attach("policy", draw_adapter(decoder, rank=4, alpha=8), trainable=True)
    branches.activate("policy")
    parameters = branches.parameters("policy")
    assert len(parameters) == 2 * 3 * 4
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    tokens = torch.randint(61, (4, 16), generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(30):
        out = decoder.logits(decoder(tokens[:, :-1]))
        loss = torch.nn.functional.cross_entropy(out.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
    trained = branches.adapter("policy")
    assert all(part.b.any() for part in trained.values())
    answer = logits(decoder)
    branches.detach("policy")
    assert equal_bits(decoder, before)
    Merger(decoder).swap(trained)
    assert torch.allclose(logits(decoder), answer, atol=1e-5)


def test_gradients_are_those_of_the_product():
    decoder = wild(dtype=torch.float64)
    linear = decoder.layers[0].self_attn.q_proj
    branches = Branches(decoder)
    branches.attach("one", adapter_of(decoder), trainable=True)
    branches.activate("one")
    wrapped = decoder.layers[0].self_attn.q_proj
    assert wrapped.weight is linear.weight
    x = torch.randn(5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a, b = wrapped.factors("one")

    def run(a, b):
        return torch.nn.functional.linear(x, linear.weight + wrapped.scales["one"] * b @ a)

    wrapped(x).square().sum().backward()
    mine = a.grad.clone(), b.grad.clone()
    a.grad = b.grad = None
    run(a, b).square().sum().backward()
    assert torch.allclose(mine[0], a.grad)
    assert torch.allclose(mine[1], b.grad)


def test_an_engine_refuses_branches():
    decoder = wild()
    branches = Branches(decoder)
    branches.attach("one", adapter_of(decoder))
    with pytest.raises(TypeError, match="Merge adapters into the weights first"):
        Engine(decoder, capacity=8).generate([[1, 2]], SamplingParams(max_tokens=2))


def test_misuse_is_refused():
    decoder = wild()
    branches = Branches(decoder)
    branches.attach("one", adapter_of(decoder))
    with pytest.raises(BadAdapter, match="attached already"):
        branches.attach("one", adapter_of(decoder))
    with pytest.raises(BadAdapter, match="no adapter 'two'"):
        branches.activate("two")
    with pytest.raises(BadAdapter, match="cannot name"):
        branches.attach("a.b", adapter_of(decoder))
    with pytest.raises(BadAdapter, match="other branches"):
        Branches(decoder).attach("one", adapter_of(decoder))
