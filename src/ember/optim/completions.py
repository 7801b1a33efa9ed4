"""What completions cost a learner: the cross-entropy of their tokens given their prompts.

Contract. Candidates of one prompt may share it: its tokens run once, and each candidate's rows read
its keys and values before their own, at the positions they have in a sequence of their own. Losses
and gradients are those of independent sequences, for a fraction of the tokens where prompts are
long. Layers run under activation checkpointing: between the passes only their inputs are kept.

Shapes: P prompts of N tokens, C completions of each of T tokens, H hidden size.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ember.model.decoder import Decoder, KeyRotation
from ember.optim.loss import token_losses
from ember.records.errors import EmberError


class BadCompletions(EmberError):
    """Completions that have no loss: of other prompts, without tokens, or beyond the context."""


def completion_losses(
    decoder: Decoder, prompts: Tensor, completions: Tensor, *, shared_prompt: bool
) -> Tensor:
    """Cross-entropy (nats) of completions' tokens (P, C, T) given prompts (P, N), (P, C, T).

    `shared_prompt`: whether the candidates of a prompt share its tokens or run one by one. Where
    completions end early, pad them and leave their losses out; prompts are all of one length. The
    gradient reaches whatever parameters of the decoder require one. Raises `BadCompletions`.
    """
    _check(decoder, prompts, completions)
    targets = completions.flatten(0, 1)  # (P·C, T)
    count, tokens = completions.shape[1:]
    # A prompt's last token is the first one of its candidates, since it predicts their first.
    last = prompts[:, -1:].repeat_interleave(count, 0)
    own, before = torch.cat([last, targets[:, :-1]], 1), prompts[:, :-1]
    if shared_prompt and before.shape[1]:
        parts = [before, own]
    else:
        parts = [torch.cat([before.repeat_interleave(count, 0), own], 1)]
    hidden = [decoder.embed(part) for part in parts]
    for layer in range(decoder.arch.num_layers):
        arguments = (_run_layer, decoder, layer, tokens, *hidden)
        hidden = checkpoint(*arguments, use_reentrant=False, preserve_rng_state=False)
    return token_losses(decoder, hidden[-1], targets).view(completions.shape)


class SharedPrompt:
    """The cache of one layer's two calls: prompts, then rows that each read their prompt.

    Gradients flow through it. Positions are the caller's to give.
    """

    wants_mass = False

    def __init__(self):
        self._prompts: tuple[Tensor, Tensor] | None = None

    def update(
        self, layer: int, k: Tensor, v: Tensor, rotation: KeyRotation, source: Tensor
    ) -> tuple[Tensor, Tensor, None]:
        """Keys and values of prompts (P, T, Hkv, D), then of their candidates (P·C, T, Hkv, D)."""
        k, v = rotation(k), v.transpose(1, 2)
        if self._prompts is None:
            self._prompts = k, v
            return k, v, None
        before = (kept.repeat_interleave(len(k) // len(kept), 0) for kept in self._prompts)
        k, v = (torch.cat(pair, 2) for pair in zip(before, (k, v), strict=True))
        return k, v, None


def _run_layer(decoder: Decoder, layer: int, tokens: int, *hidden: Tensor) -> list[Tensor]:
    """A layer's outputs (rows, tokens, H) of its inputs, which follow one another in position.

    Of the last layer only completions' outputs are wanted, the last `tokens` of the last part.
    """
    cache, final = SharedPrompt(), layer == decoder.arch.num_layers - 1
    outputs, start = [], 0
    for place, x in enumerate(hidden):
        stop = start + x.shape[1]
        wanted = tokens if place == len(hidden) - 1 else 1
        outputs.append(
            decoder(
                hidden=x,
                positions=torch.arange(start, stop, device=x.device),
                cache=cache,
                layers=range(layer, layer + 1),
                last=wanted if final else None,
            )
        )
        start = stop
    return outputs


def _check(decoder: Decoder, prompts: Tensor, completions: Tensor) -> None:
    if prompts.ndim != 2 or completions.ndim != 3 or len(prompts) != len(completions):
        raise BadCompletions(
            f"prompts {tuple(prompts.shape)} and completions {tuple(completions.shape)} do not "
            "belong together.\nGive prompts (P, N) and completions (P, C, T)."
        )
    if not (prompts.numel() and completions.numel()):
        raise BadCompletions(
            f"there is nothing to learn from prompts {tuple(prompts.shape)} and completions "
            f"{tuple(completions.shape)}.\nGive every prompt and completion at least one token."
        )
    whole, most = prompts.shape[1] + completions.shape[2], decoder.arch.max_positions
    if whole > most:
        raise BadCompletions(
            f"{prompts.shape[1]} prompt tokens and {completions.shape[2]} new ones exceed the "
            f"model's context of {most} tokens.\nShorten them."
        )
