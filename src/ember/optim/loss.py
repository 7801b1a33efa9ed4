"""Cross-entropy of a decoder's tokens, without ever holding all of their logits."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from ember.model.decoder import Decoder

LOGITS_AT_ONCE = 1 << 27  # numbers; half a gigabyte in float32
FLOATS_AT_ONCE = 1 << 22  # of the logits that are there, in float32


def next_token_loss(decoder: Decoder, batch: Tensor) -> Tensor:
    """Mean cross-entropy (nats) of tokens (B, T + 1) given those before them."""
    return token_losses(decoder, decoder(batch[:, :-1]), batch[:, 1:]).mean()


def token_losses(
    decoder: Decoder, hidden: Tensor, targets: Tensor, logits_at_once: int = LOGITS_AT_ONCE
) -> Tensor:
    """Cross-entropy (nats) of tokens (B, T) given the hidden states (B, T, H) before them, (B, T).

    Of more than `logits_at_once` numbers the logits are computed in pieces, and again for the
    gradient, so that memory is that of a piece for the cost of a second product with the head.
    """
    rows = max(1, logits_at_once // decoder.arch.vocab_size)
    hidden, wanted = hidden.flatten(0, 1), targets.flatten()
    if len(hidden) <= rows:
        return _losses(decoder, hidden, wanted).view(targets.shape)
    pieces = zip(hidden.split(rows), wanted.split(rows), strict=True)
    if torch.is_grad_enabled():
        losses = [
            checkpoint(_losses, decoder, *piece, use_reentrant=False, preserve_rng_state=False)
            for piece in pieces
        ]
    else:
        losses = [_losses(decoder, *piece) for piece in pieces]
    return torch.cat(losses).view(targets.shape)


def _losses(decoder: Decoder, hidden: Tensor, targets: Tensor) -> Tensor:
    return CrossEntropy.apply(decoder.logits(hidden), targets)


class CrossEntropy(torch.autograd.Function):
    """-log p (n,), float32, of targets (n,) under logits (n, V), which are kept in their own type:
    in float32 they, their softmax and its gradient would take twelve bytes each."""

    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor) -> Tensor:
        sums = torch.cat([some.float().logsumexp(-1) for some in logits.split(_rows(logits))])
        ctx.save_for_backward(logits, targets, sums)
        return sums - logits.gather(-1, targets[:, None])[:, 0].float()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        logits, targets, sums = ctx.saved_tensors
        found = torch.empty_like(logits)
        parts = (t.split(_rows(logits)) for t in (found, logits, targets, sums, gradient))
        for out, some, wanted, total, factor in zip(*parts, strict=True):
            share = (some.float() - total[:, None]).exp_()
            share[torch.arange(len(share), device=share.device), wanted] -= 1
            out.copy_(share.mul_(factor[:, None]))
        return found, None


def _rows(logits: Tensor) -> int:
    return max(1, FLOATS_AT_ONCE // logits.shape[-1])
