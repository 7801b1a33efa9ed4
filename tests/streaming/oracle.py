"""Streams without a cache: a masked full forward, in which each query sees what it is said to see.

`Spy` notes what a StreamingCache claims; `full_forward` believes it and computes all else itself.
"""

import torch

from ember.model.decoder import rotary_tables, rotate
from ember.streaming import stream
from ember.streaming.cache import StreamingCache


class Spy(StreamingCache):
    """Notes for each layer and token the numbers (B, s + 1) of those that its query sees."""

    made: list["Spy"]

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.visible = [{} for _ in range(self.arch.num_layers)]
        Spy.made.append(self)

    def update(self, layer, k, v, rotation, source):
        read = super().update(layer, k, v, rotation, source)
        stop = self.length(layer)
        for slot in range(stop - k.shape[1], stop):
            ids = self.ids[layer, :, : slot + 1].clone()
            self.visible[layer].setdefault(int(ids[0, -1]), ids)  # a recomputed one was seen before
        return read


def spied_run(monkeypatch, decoder, tokens, method, **options):
    """A run, and the cache that it used."""
    Spy.made = []
    monkeypatch.setattr(stream, "StreamingCache", Spy)
    found = stream.run(decoder, tokens, method, **options)
    [cache] = Spy.made
    return found, cache


@torch.inference_mode()
def full_forward(decoder, tokens, visible, absolute=False):
    """Losses (B, T - 1) where query t of a layer sees the tokens `visible[layer][t]` (B, n), in
    this order at the positions 0 … n - 1, its own the last; or all where they stood in the text."""
    arch, x = decoder.arch, decoder.embed(tokens)
    group = arch.num_heads // arch.num_kv_heads
    for n, layer in enumerate(decoder.layers):
        attention, normed = layer.self_attn, layer.input_layernorm(x)
        q, k, v = (
            project(normed).unflatten(-1, (-1, arch.head_dim))
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        if attention.q_norm is not None:
            q, k = attention.q_norm(q), attention.k_norm(k)
        outs = torch.zeros(*tokens.shape, arch.num_heads * arch.head_dim, dtype=x.dtype)
        for t in range(tokens.shape[1]):
            for row, ids in enumerate(visible[n][t]):
                at = ids if absolute else torch.arange(len(ids))
                table = rotary_tables(arch, at, x.dtype)
                turned = rotate(k[row, ids][None], *table).repeat_interleave(group, 2)[0]
                mine = rotate(q[row, t][None, None], *(one[:, -1:] for one in table))[0, 0]
                scores = (mine * turned).sum(-1) / arch.head_dim**0.5  # (n, Hq)
                values = v[row, ids].repeat_interleave(group, 1)
                outs[row, t] = (scores.softmax(0)[..., None] * values).sum(0).flatten()
        attended = attention.o_proj(outs)
        after = x + attended
        x = after + layer.mlp(layer.post_attention_layernorm(x if layer.parallel else after))
    logits = decoder.logits(x[:, :-1]).log_softmax(-1)
    return -logits.gather(-1, tokens[:, 1:, None])[..., 0].numpy()
