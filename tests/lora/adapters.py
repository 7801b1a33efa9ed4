"""Tiny decoders with Transformers' twin of the same weights, and adapters for them."""

import torch

from ember.lora.adapter import ATTENTION, Adapter, draw_adapter
from ember.model.checkpoint import save_decoder
from ember.model.decoder import Decoder


def adapter_of(decoder: Decoder, seed: int = 1, *, rank: int = 4, b_std: float = 0.1, **more):
    """A drawn adapter that does something."""
    options = {"alpha": 2.0 * rank, "projections": ATTENTION} | more
    return draw_adapter(decoder, rank=rank, seed=seed, b_std=b_std, name=f"seed-{seed}", **options)


def logits(decoder: Decoder, seed: int = 3) -> torch.Tensor:
    """Logits (2, 12, V) of some tokens, in float32."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(decoder.arch.vocab_size, (2, 12), generator=generator)
    device = decoder.embed_tokens.weight.device
    with torch.inference_mode():
        return decoder.logits(decoder(tokens.to(device))).float()


def bits(decoder: Decoder) -> dict[str, torch.Tensor]:
    """A copy of all weights."""
    return {name: p.detach().clone() for name, p in decoder.named_parameters()}


def equal_bits(decoder: Decoder, before: dict[str, torch.Tensor]) -> bool:
    """Whether no weight differs in any bit."""
    now = dict(decoder.named_parameters())
    return all(
        torch.equal(now[name].detach().view(torch.uint8), kept.view(torch.uint8))
        for name, kept in before.items()
    )


def merged_by_hand(decoder: Decoder, adapter: Adapter) -> Decoder:
    """A decoder of the same weights plus the adapter's changes, in float64."""
    twin = Decoder(decoder.arch).to(torch.float64)
    twin.load_state_dict({k: v.double() for k, v in decoder.state_dict().items()})
    with torch.no_grad():
        for (layer, name), part in adapter.items():
            holder = twin.layers[layer].self_attn if name in ATTENTION else twin.layers[layer].mlp
            getattr(holder, name).weight += part.delta()
    return twin


def saved(decoder: Decoder, folder):
    """A model directory that Transformers reads."""
    return save_decoder(decoder, folder, weights="random")
