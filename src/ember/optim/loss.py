"""Cross-entropy of a decoder's tokens, without ever holding all of their logits."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ember.model.decoder import Decoder

LOGITS_AT_ONCE = 1 << 27  # numbers; half a gigabyte in float32


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
    return F.cross_entropy(decoder.logits(hidden).float(), targets, reduction="none")
