"""Losses of completions: a shared prompt gives those of independent sequences, gradients too."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.lora.branch import Branches
from ember.optim.completions import BadCompletions, completion_losses
from tests.lora.adapters import adapter_of
from tests.model.drawn import architectures, decoder_of
from tests.tiny import ARCHITECTURES, draw, wild


def batch_of(prompts=2, tokens=9, candidates=3, new=5, vocabulary=61):
    """Prompts (P, N) and completions (P, C, T)."""
    drawn = draw(prompts * candidates, tokens + new, vocabulary)
    completions = drawn[:, tokens:].view(prompts, candidates, new)
    return drawn[::candidates, :tokens], completions


def plain(decoder, prompts, completions) -> torch.Tensor:
    """The definition: every sequence by itself, all logits, no checkpoint."""
    count, new = completions.shape[1:]
    whole = torch.cat([prompts.repeat_interleave(count, 0), completions.flatten(0, 1)], 1)
    logits = decoder.logits(decoder(whole[:, :-1]))[:, -new:]
    losses = F.cross_entropy(
        logits.flatten(0, 1).float(), whole[:, -new:].flatten(), reduction="none"
    )
    return losses.view(completions.shape)


def weighed(losses: torch.Tensor) -> torch.Tensor:
    """A loss in which every token counts, each by another amount and some not at all."""
    return (losses * torch.arange(losses.numel()).remainder(5).view(losses.shape) - 1).sum()


@pytest.mark.parametrize("shared_prompt", [False, True])
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_both_forms_are_the_definition_in_float32(model_type, shared_prompt):
    decoder, batch = wild(model_type, scale=0.2), batch_of()
    decoder.requires_grad_(False)
    branches = Branches(decoder)
    branches.attach("policy", adapter_of(decoder), trainable=True)
    branches.activate("policy")
    parameters = branches.parameters("policy")
    expected = plain(decoder, *batch)
    losses = completion_losses(decoder, *batch, shared_prompt=shared_prompt)
    assert torch.allclose(losses, expected, rtol=1e-5, atol=1e-5)
    wanted = torch.autograd.grad(weighed(expected), parameters)
    found = torch.autograd.grad(weighed(losses), parameters)
    scale = max(gradient.abs().max() for gradient in wanted)
    for mine, other in zip(found, wanted, strict=True):
        assert torch.allclose(mine / scale, other / scale, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(architectures(), st.integers(1, 2), st.integers(1, 7), st.integers(1, 3), st.integers(1, 4))
def test_a_shared_prompt_changes_nothing_whatever_the_decoder_has(arch, count, tokens, rows, new):
    """All weights train here, and sizes go down to a single token of each kind."""
    decoder, batch = decoder_of(arch), batch_of(count, tokens, rows, new, arch.vocab_size)
    parameters = list(decoder.parameters())
    expected = plain(decoder, *batch)
    losses = completion_losses(decoder, *batch, shared_prompt=True)
    assert torch.allclose(losses, expected, rtol=1e-5, atol=1e-5)
    wanted = torch.autograd.grad(weighed(expected), parameters, allow_unused=True)
    found = torch.autograd.grad(weighed(losses), parameters, allow_unused=True)
    for parameter, *both in zip(parameters, found, wanted, strict=True):
        # A gradient of zero and none are the same.
        mine, other = (torch.zeros_like(parameter) if g is None else g for g in both)
        assert torch.allclose(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("projection", ["q_proj", "k_proj", "v_proj", "o_proj"])
def test_gradients_reach_an_adapter_of_one_projection_of_one_layer(projection):
    """Where a layer's queries need no gradient and its keys or values do, attention must know."""
    decoder, batch = wild(), batch_of()
    decoder.requires_grad_(False)
    branches = Branches(decoder)
    adapter = adapter_of(decoder, projections=(projection,)).only(layers=[1])
    branches.attach("policy", adapter, trainable=True)
    branches.activate("policy")
    parameters = branches.parameters("policy")
    wanted = torch.autograd.grad(weighed(plain(decoder, *batch)), parameters)
    losses = completion_losses(decoder, *batch, shared_prompt=True)
    found = torch.autograd.grad(weighed(losses), parameters)
    for mine, other in zip(found, wanted, strict=True):
        assert other.abs().max() > 1e-3
        assert torch.allclose(mine, other, rtol=1e-4, atol=1e-4 * other.abs().max())


def test_candidates_of_a_prompt_do_not_see_each_other_nor_other_prompts():
    decoder, (prompts, completions) = wild(), batch_of()
    with torch.no_grad():
        losses = completion_losses(decoder, prompts, completions, shared_prompt=True)
        other = completions.clone()
        other[0, 1] = (other[0, 1] + 1) % 61
        changed = completion_losses(decoder, prompts, other, shared_prompt=True)
    same = torch.ones_like(losses, dtype=torch.bool)
    same[0, 1] = False
    assert torch.equal(changed[same], losses[same])
    assert (changed[0, 1] - losses[0, 1]).abs().min() > 1e-4


@pytest.mark.parametrize(
    ("prompts", "completions", "message"),
    [
        ((2, 4), (3, 2, 5), "do not belong together"),
        ((2, 4), (2, 5), "do not belong together"),
        ((2, 0), (2, 2, 5), "at least one token"),
        ((2, 4), (2, 2, 0), "at least one token"),
        ((2, 4), (2, 0, 5), "at least one token"),
        ((1, 100), (1, 2, 29), "context of 128 tokens"),
    ],
)
def test_what_has_no_loss_is_refused(prompts, completions, message):
    batch = (torch.zeros(shape, dtype=torch.long) for shape in (prompts, completions))
    with pytest.raises(BadCompletions, match=message):
        completion_losses(wild(), *batch, shared_prompt=True)
