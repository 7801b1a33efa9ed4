"""Cross-entropy in pieces: the plain one's values and gradients, a piece's memory."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from ember.model.decoder import Decoder
from ember.optim import loss
from ember.optim.loss import next_token_loss, token_losses
from tests.model.drawn import architectures, decoder_of, tokens_of


def plain(decoder: Decoder, batch: torch.Tensor) -> torch.Tensor:
    """The definition, in the weights' precision."""
    logits = decoder.logits(decoder(batch[:, :-1]))
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


class Largest(TorchDispatchMode):
    """The most numbers of any tensor that an operation gives, forwards and backwards."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **kwargs or {})
        for each in out if isinstance(out, tuple | list) else (out,):
            if isinstance(each, torch.Tensor):
                self.numel = max(self.numel, each.numel())
        return out


@settings(max_examples=30, deadline=None)
@given(architectures(), st.integers(1, 3), st.integers(2, 9), st.integers(1, 400))
def test_values_and_gradients_are_those_of_plain_cross_entropy(arch, batch, tokens, at_once):
    decoder, text = decoder_of(arch), tokens_of(arch, batch, tokens + 1)
    expected = plain(decoder, text)
    wanted = torch.autograd.grad(expected, list(decoder.parameters()), allow_unused=True)
    losses = token_losses(decoder, decoder(text[:, :-1]), text[:, 1:], at_once)
    assert losses.shape == (batch, tokens)
    torch.testing.assert_close(losses.mean().double(), expected, atol=1e-4, rtol=1e-5)
    found = torch.autograd.grad(losses.mean(), list(decoder.parameters()), allow_unused=True)
    for mine, true in zip(found, wanted, strict=True):
        assert (mine is None) == (true is None)
        if true is not None:
            scale = 1 + true.abs().max().item()
            torch.testing.assert_close(mine / scale, true / scale, atol=1e-4, rtol=0)
    with torch.inference_mode():
        again = token_losses(decoder, decoder(text[:, :-1]), text[:, 1:], at_once)
    torch.testing.assert_close(again, losses.detach())


@pytest.mark.parametrize("backward", [False, True])
def test_no_more_logits_are_held_than_a_piece_has(backward):
    """Values of all tokens at once would be 2000 x 997; a piece has at most 30 x 997."""
    from ember.model.architecture import Architecture
    from ember.model.checkpoint import random_decoder

    arch = Architecture.make(
        model_type="llama",
        hidden_size=8,
        intermediate_size=8,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        vocab_size=997,
        max_positions=16,
    )
    decoder, hidden = random_decoder(arch, seed=0), torch.randn(4, 500, 8, requires_grad=True)
    targets = torch.randint(997, (4, 500))
    with Largest() as largest:
        loss = token_losses(decoder, hidden, targets, 30 * 997).mean()
        if backward:
            loss.backward()
    assert largest.numel <= 30 * 997
    with Largest() as largest:
        token_losses(decoder, hidden, targets)
    assert largest.numel == 2000 * 997  # as long as they fit, they are computed once


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at_once", [1, 60, 1 << 22])
def test_logits_are_widened_in_parts(monkeypatch, dtype, at_once):
    monkeypatch.setattr(loss, "FLOATS_AT_ONCE", at_once)
    logits = (5 * torch.randn(7, 23)).to(dtype).requires_grad_()
    targets, weights = torch.randint(23, (7,)), torch.rand(7)
    losses = loss.CrossEntropy.apply(logits, targets)
    exact = logits.detach().double().requires_grad_()
    expected = F.cross_entropy(exact, targets, reduction="none")
    torch.testing.assert_close(losses.double(), expected, atol=1e-5, rtol=1e-5)
    (losses * weights).sum().backward()
    (expected * weights).sum().backward()
    off = 2.0**-8 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(logits.grad.double(), exact.grad, atol=1e-6, rtol=off)


def test_the_mean_over_next_tokens():
    from tests.optim.test_lm import fresh

    decoder, text = fresh(), torch.randint(24, (3, 9))
    torch.testing.assert_close(next_token_loss(decoder, text), plain(decoder, text))
