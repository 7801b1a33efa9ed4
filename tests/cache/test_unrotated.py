"""UnrotatedCache: ContiguousCache as long as nothing is dropped, then a masked full forward."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.cache.base import BadCacheUse, CacheFull, KVRead
from ember.cache.contiguous import ContiguousCache
from ember.cache.unrotated import UnrotatedCache
from ember.model.decoder import Decoder, rotary_tables, rotate
from tests.model.drawn import architectures, decoder_of, tokens_of
from tests.tiny import ARCHITECTURES, tiny

EXACT = {"atol": 1e-9, "rtol": 1e-9}


@pytest.fixture(params=ARCHITECTURES)
def decoder(request):
    return decoder_of(tiny(request.param, vocab_size=31, max_positions=64))


class Curious(UnrotatedCache):
    """Tells attention mass, and adds a bias by layer where it has one."""

    wants_mass = True

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.mass: dict[int, torch.Tensor] = {}
        self.bias: dict[int, torch.Tensor] = {}

    def update(self, layer, k, v, rotation, source):
        read = super().update(layer, k, v, rotation, source)
        if layer not in self.bias:
            return read
        bias = torch.zeros(*self.bias[layer].shape, 1, read.k.shape[2], dtype=torch.float64)
        bias[..., 0, 0] = self.bias[layer]
        return KVRead(read.k, read.v, bias if read.bias is None else bias + read.bias)

    def observe(self, layer, mass):
        self.mass[layer] = mass


def unrotated(decoder: Decoder, batch: int = 2, capacity: int = 64, kind=UnrotatedCache):
    return kind(decoder.arch, batch, capacity, dtype=torch.float64)


@torch.inference_mode()
@pytest.mark.parametrize("chunks", [[30], [7, 1, 12, 1, 9]])
def test_it_equals_the_contiguous_cache(decoder, chunks):
    tokens = tokens_of(decoder.arch, 2, 30)
    plain = ContiguousCache(decoder.arch, 2, 30, dtype=torch.float64)
    cache = unrotated(decoder)
    for piece in tokens.split(chunks, 1):
        expected = decoder(piece, cache=plain)
        torch.testing.assert_close(decoder(piece, cache=cache), expected, **EXACT)
    assert cache.key_positions(0).tolist() == list(range(30))


class Diary:
    """What a cache claims while tokens pass: who sees whom, and where everyone stands."""

    def __init__(self, cache: UnrotatedCache):
        self.cache, self.layers = cache, range(cache.arch.num_layers)
        self.tokens, self.calls, self.seen = [], [], 0
        self.held: list[list[int]] = [[] for _ in self.layers]  # tokens by number, by layer

    def note(self, tokens, positions=None) -> None:
        """A call that is about to be made."""
        positions = self.cache.positions(tokens.shape[1], 0) if positions is None else positions
        before = [
            dict(zip(self.held[n], self.cache.key_positions(n).tolist(), strict=True))
            for n in self.layers
        ]
        ids = range(self.seen, self.seen + tokens.shape[1])
        self.calls.append((dict(zip(ids, positions.tolist(), strict=True)), before))
        self.tokens.append(tokens)
        self.seen += tokens.shape[1]
        for held in self.held:
            held.extend(ids)

    def keep(self, layer: int, places: list[int]) -> None:
        self.cache.keep(places, [layer])
        self.held[layer] = [self.held[layer][place] for place in places]

    def forward(self, decoder: Decoder, biases=None) -> tuple[torch.Tensor, list[dict]]:
        """All tokens at once, without a cache: hidden states, and each key's mass by call, layer.

        A bias (B, Hq) by (call, layer) is on the first key that the call reads.
        """
        arch, x, masses = decoder.arch, decoder.embed(torch.cat(self.tokens, 1)), []
        for n, layer in enumerate(decoder.layers):
            attention, normed = layer.self_attn, layer.input_layernorm(x)
            q, k, v = (
                project(normed).unflatten(-1, (-1, arch.head_dim))
                for project in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            if attention.q_norm is not None:
                q, k = attention.q_norm(q), attention.k_norm(k)
            q = q * (attention.q_factor or 1.0)
            group, outs = arch.num_heads // arch.num_kv_heads, []
            for call, (own, before) in enumerate(self.calls):
                total = 0
                for query, place in own.items():
                    stands = before[n] | {key: at for key, at in own.items() if key <= query}
                    ids, at = list(stands), torch.tensor(list(stands.values()))
                    table = rotary_tables(arch, at, x.dtype, local=arch.rope_is_local(n))
                    turned = rotate(k[:, ids], *table).repeat_interleave(group, 2)
                    mine = rotary_tables(
                        arch, torch.tensor([place]), x.dtype, local=arch.rope_is_local(n)
                    )
                    one = rotate(q[:, [query]], *mine)  # (B, 1, Hq, D)
                    scores = (one * turned).sum(-1).transpose(1, 2) / arch.head_dim**0.5
                    if biases and (call, n) in biases:
                        scores[..., 0] += biases[call, n]
                    if arch.window(n) is not None:
                        scores = scores.masked_fill(place - at >= arch.window(n), -torch.inf)
                    shares = scores.softmax(-1)  # (B, Hq, S)
                    values = v[:, ids].repeat_interleave(group, 2)
                    outs.append(torch.einsum("bhs,bshd->bhd", shares, values).flatten(1))
                    wide = torch.zeros(*shares.shape[:2], len(before[n]) + len(own)).to(shares)
                    wide[..., : len(ids)] = shares
                    total = total + wide
                masses.append((call, n, total))
            x = self._rest(layer, x, attention.o_proj(torch.stack(outs, 1)))
        return x, masses

    @staticmethod
    def _rest(layer, x, attended):
        if layer.attn_out_norm is not None:
            attended = layer.attn_out_norm(attended)
        after = x + attended
        fed = layer.mlp(layer.post_attention_layernorm(x if layer.parallel else after))
        return after + (fed if layer.mlp_out_norm is None else layer.mlp_out_norm(fed))


@torch.inference_mode()
def test_explicit_positions_and_ranges_of_layers_are_kept(decoder):
    """Windows go by position: what stands further away than that is not seen."""
    tokens = tokens_of(decoder.arch, 2, 9)
    positions = torch.tensor([0, 1, 2, 5, 6, 40, 41, 42, 43])
    cache = unrotated(decoder)
    diary, hidden = Diary(cache), decoder.embed(tokens)
    for part in (slice(0, 4), slice(4, 9)):
        diary.note(tokens[:, part], positions[part])
        x = hidden[:, part]
        for layers in (range(1), range(1, 3)):
            x = decoder(hidden=x, layers=layers, positions=positions[part], cache=cache)
    torch.testing.assert_close(x, diary.forward(decoder)[0][:, 4:], **EXACT)
    assert cache.positions(2, 0).tolist() == [44, 45]


@torch.inference_mode()
def test_a_sink_and_a_window_that_closes_up(decoder):
    """As in StreamingLLM: the first tokens and the last ones stay, and stand side by side."""
    cache = unrotated(decoder, capacity=8)
    diary = Diary(cache)
    for token in tokens_of(decoder.arch, 2, 14).split(1, 1):
        diary.note(token)
        found = decoder(token, cache=cache)
        if cache.length(0) == 8:
            for layer in range(3):
                diary.keep(layer, [0, 1, 4, 5, 6, 7])
            cache.move(range(6))
    torch.testing.assert_close(found, diary.forward(decoder)[0][:, -1:], **EXACT)
    assert cache.positions(1, 0).item() == 6


@settings(max_examples=60, deadline=None)
@given(architectures(), st.data())
def test_any_schedule_of_drops_and_moves_equals_a_masked_forward(arch, data):
    """Each layer drops what it likes; positions stay or close up; mass is the softmax's."""
    decoder = decoder_of(arch)
    cache = unrotated(decoder, kind=Curious)
    diary, layers = Diary(cache), range(arch.num_layers)
    biases, found, told = {}, [], []
    with torch.inference_mode():
        for call in range(data.draw(st.integers(1, 4), label="calls")):
            tokens = tokens_of(arch, 2, data.draw(st.integers(1, 5), label="tokens"), seed=call)
            cache.bias = {}
            for layer in data.draw(st.sets(st.sampled_from(layers)), label="biased"):
                generator = torch.Generator().manual_seed(layer)
                drawn = torch.randn(2, arch.num_heads, generator=generator).double()
                cache.bias[layer] = biases[call, layer] = drawn
            diary.note(tokens)
            found.append(decoder(tokens, cache=cache))
            told.append(cache.mass)
            cache.mass = {}
            for layer in layers:
                there = st.sampled_from(range(cache.length(layer)))
                diary.keep(layer, sorted(data.draw(st.sets(there), label="kept")))
            if data.draw(st.booleans(), label="close up"):
                end = max(cache.length(layer) for layer in layers)
                for layer in layers:
                    cache.move(range(end - cache.length(layer), end), [layer])
        expected, masses = diary.forward(decoder, biases)
    torch.testing.assert_close(torch.cat(found, 1), expected, **EXACT)
    for call, layer, mass in masses:
        torch.testing.assert_close(told[call][layer], mass, **EXACT)
        each = torch.full_like(mass[..., 0], float(diary.tokens[call].shape[1]))
        torch.testing.assert_close(told[call][layer].sum(-1), each)


def test_what_cannot_be_is_refused(decoder):
    cache = unrotated(decoder, capacity=6)
    tokens = tokens_of(decoder.arch, 2, 5)
    with torch.inference_mode():
        decoder(tokens, cache=cache)
        with pytest.raises(CacheFull, match=r"7 tokens(.|\n)*capacity=7"):
            decoder(tokens[:, :2], cache=cache)
        with pytest.raises(BadCacheUse, match="one position a token"):
            decoder(tokens[:, :1], cache=cache, positions=torch.tensor([[5], [6]]))
    with pytest.raises(BadCacheUse, match="keeps no gradients"):
        decoder(tokens[:, :1], cache=cache)
    for places in ([0, 5], [2, 1], [1, 1], [-1]):
        with pytest.raises(BadCacheUse, match="cannot keep"):
            cache.keep(places)
    for positions in ([0, 1], [0, 1, 2, 3, 3], [-1, 0, 1, 2, 3]):
        with pytest.raises(BadCacheUse, match="cannot move"):
            cache.move(positions)
    with pytest.raises(ValueError, match="1 or more"):
        unrotated(decoder, capacity=0)
    assert [cache.length(layer) for layer in range(3)] == [5, 5, 5]
    cache.reset()
    assert cache.length(0) == 0
    assert cache.positions(2, 0).tolist() == [0, 1]
