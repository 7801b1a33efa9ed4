"""Parity with Transformers in float32, and the decoder's own ways of running."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.cache.base import KVRead
from ember.cache.contiguous import ContiguousCache
from ember.model.architecture import Architecture
from ember.model.decoder import Decoder, attend, attend_explicitly, attend_near
from ember.model.names import from_hf
from ember.model.rope import RopeScaling
from tests.model.drawn import architectures, decoder_of, tokens_of

TOLERANCE = 1e-4
SIZES = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "vocab_size": 67,
    "max_positions": 128,
}
NEOX = {"num_kv_heads": 4, "head_dim": 12, "rope_fraction": 0.5}
SHAPES = {
    "qwen3-tied": ("qwen3", {"tie_embeddings": True}),
    "qwen3-untied": ("qwen3", {}),
    "qwen3-bias": ("qwen3", {"qkv_bias": True, "o_bias": True}),
    "qwen3-mha": ("qwen3", {"num_kv_heads": 4}),
    "qwen3-mqa": ("qwen3", {"num_kv_heads": 1, "rope_theta": 1e6}),
    "qwen2-tied": ("qwen2", {"tie_embeddings": True}),
    "llama-scaled": ("llama", {"rope_scaling": RopeScaling(8.0, 1.0, 4.0, 32), "head_dim": 12}),
    "llama-mlp-bias": ("llama", {"mlp_bias": True, "norm_eps": 1e-5}),
    "llama-linear-gelu": ("llama", {"rope_scaling": RopeScaling(4.0), "activation": "gelu"}),
    "gemma3": ("gemma3_text", {"sliding_window": 5, "sliding_layers": (0, 2)}),
    "gemma3-untied": (
        "gemma3_text",
        {
            "sliding_window": 4,
            "rope_scaling": RopeScaling(8.0),
            "query_scalar": 9,
            "tie_embeddings": False,
            "qkv_bias": True,
            "o_bias": True,
        },
    ),
    "gemma3-wide-window": ("gemma3_text", {"head_dim": 32, "num_kv_heads": 1}),
    "gemma3-no-window": ("gemma3_text", {"sliding_layers": (), "activation": "gelu"}),
    "gemma3-short-window": ("gemma3_text", {"sliding_window": 2, "sliding_layers": (1,)}),
    "neox": ("gpt_neox", NEOX),
    "neox-serial": ("gpt_neox", NEOX | {"parallel_residual": False, "rope_fraction": 1.0}),
    "neox-tied": (
        "gpt_neox",
        NEOX
        | {"tie_embeddings": True, "qkv_bias": False, "o_bias": False, "activation": "gelu_tanh"},
    ),
    "neox-linear": ("gpt_neox", NEOX | {"rope_scaling": RopeScaling(2.0), "rope_theta": 5e3}),
}


def make_pair(model_type: str, changes: dict, seed: int = 0):
    """A Transformers model with wild random weights, and our decoder with the same ones."""
    from transformers import AutoConfig, AutoModelForCausalLM

    arch = Architecture.make(model_type=model_type, **SIZES | changes)
    torch.manual_seed(seed)
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**arch.to_hf())).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            # Larger than any initialisation, so that attention is far from uniform.
            norm = "norm" in name and name.endswith("weight") and arch.norm != "rms_offset"
            parameter.normal_(1.0 if norm else 0.0, 0.3)
    ours = Decoder(arch)
    ours.load_state_dict(our_state(arch, theirs.state_dict()))
    return theirs, ours.eval()


def our_state(arch: Architecture, state: dict) -> dict:
    """A Transformers state by our names, a tied head left out."""
    return {
        ours: piece
        for name, tensor in state.items()
        for ours, piece in from_hf(arch, name, tensor).items()
        if not (arch.tie_embeddings and ours == "lm_head.weight")
    }


@pytest.fixture(scope="module", params=SHAPES)
def pair(request):
    return make_pair(*SHAPES[request.param])


@pytest.fixture(scope="module")
def decoder():
    return make_pair("qwen3", {"tie_embeddings": True})[1]


def draw_tokens(batch: int, count: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(SIZES["vocab_size"], (batch, count), generator=generator)


def new_cache(decoder: Decoder, batch: int = 1, capacity: int = 64, **kwargs) -> ContiguousCache:
    return ContiguousCache(decoder.arch, batch, capacity, **kwargs)


def close(a, b):
    torch.testing.assert_close(a, b, atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_logits_and_caches_equal_transformers(pair):
    theirs, ours = pair
    tokens = draw_tokens(2, 21)
    expected = theirs(tokens, use_cache=True)
    cache = new_cache(ours, batch=2)
    close(ours.logits(ours(tokens, cache=cache)), expected.logits)
    for layer, kept in enumerate(expected.past_key_values.layers):
        window = ours.arch.window(layer)  # of whose tokens Transformers keeps all but one
        first = 0 if window is None else max(0, 21 - window + 1)
        k, v = cache.read(layer, first)
        common = slice(kept.keys.shape[2] - k.shape[2], None)
        close(k, kept.keys[:, :, common])
        close(v, kept.values[:, :, common])


@torch.inference_mode()
def test_decoding_token_by_token_equals_transformers(pair):
    theirs, ours = pair
    tokens = draw_tokens(2, 12)
    expected = theirs(tokens).logits
    cache = new_cache(ours, batch=2)
    steps = [ours.logits(ours(tokens[:, t : t + 1], cache=cache)) for t in range(12)]
    close(torch.cat(steps, 1), expected)


@torch.inference_mode()
def test_prefill_in_pieces_equals_transformers(pair):
    """Pieces shorter and longer than the windows, over caches longer than these."""
    theirs, ours = pair
    tokens = draw_tokens(2, 30)
    cache, kept, start = new_cache(ours, batch=2), None, 0
    for stop in (3, 4, 9, 21, 30):
        expected = theirs(tokens[:, start:stop], past_key_values=kept, use_cache=True)
        close(ours.logits(ours(tokens[:, start:stop], cache=cache)), expected.logits)
        kept, start = expected.past_key_values, stop


@torch.inference_mode()
def test_ranges_of_layers_equal_transformers(pair):
    """Hidden states between layers, and runs that start from them or from embeddings."""
    theirs, ours = pair
    tokens = draw_tokens(2, 14)
    states = theirs(tokens, output_hidden_states=True).hidden_states  # the last one is normed
    close(ours.embed(tokens), states[0])
    for first in range(3):
        for stop in range(first + 1, 3):
            close(ours(hidden=states[first], layers=range(first, stop)), states[stop])
        close(ours.norm(ours(hidden=states[first], layers=range(first, 3))), states[3])


@torch.inference_mode()
def test_explicit_positions_equal_transformers(pair):
    theirs, ours = pair
    tokens = draw_tokens(2, 9)
    shared = torch.tensor([0, 1, 2, 5, 6, 40, 41, 42, 43])
    per_row = torch.stack([shared, shared + 7])
    expected = theirs(tokens, position_ids=per_row).logits
    close(ours.logits(ours(tokens, positions=per_row)), expected)
    close(ours.logits(ours(tokens[:1], positions=shared)), expected[:1])


def test_gradients_equal_transformers(pair):
    theirs, ours = pair
    tokens = draw_tokens(2, 13)

    def loss(logits):
        return torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), tokens[:, 1:].ravel()
        )

    loss(theirs(tokens).logits).backward()
    loss(ours.logits(ours(tokens))).backward()
    gradients = our_state(ours.arch, {n: p.grad for n, p in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        close(parameter.grad, gradients[name])
        parameter.grad = None
    theirs.zero_grad()


@settings(max_examples=60, deadline=None)
@given(architectures(), st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 3))
def test_chunked_prefill_equals_one_shot(arch, chunks, batch):
    decoder, tokens = decoder_of(arch), tokens_of(arch, batch, sum(chunks))
    with torch.inference_mode():
        whole, pieces = (new_cache(decoder, batch, dtype=torch.float64) for _ in range(2))
        expected = decoder(tokens, cache=whole)
        found = torch.cat([decoder(c, cache=pieces) for c in tokens.split(chunks, 1)], 1)
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(decoder(tokens), expected, atol=1e-9, rtol=1e-9)
        for layer in range(arch.num_layers):
            torch.testing.assert_close(pieces.read(layer), whole.read(layer), atol=1e-9, rtol=1e-9)


@settings(max_examples=40, deadline=None)
@given(architectures(), st.integers(0, 3), st.integers(0, 3))
def test_layer_ranges_compose(arch, a, b):
    decoder, tokens = decoder_of(arch), tokens_of(arch, 2, 8)
    first, second = sorted(min(x, arch.num_layers) for x in (a, b))
    with torch.inference_mode():
        hidden = decoder.embed(tokens)
        for part in (range(first), range(first, second), range(second, arch.num_layers)):
            hidden = decoder(hidden=hidden, layers=part)
        torch.testing.assert_close(hidden, decoder(tokens), atol=0, rtol=0)


@settings(max_examples=40, deadline=None)
@given(architectures(), st.integers(1, 12))
def test_a_token_changes_nothing_before_it(arch, at):
    decoder, tokens = decoder_of(arch), tokens_of(arch, 1, 13)
    other = tokens.clone()
    other[0, at] = (other[0, at] + 1) % arch.vocab_size
    with torch.inference_mode():
        before, after = decoder(tokens), decoder(other)
    torch.testing.assert_close(before[:, :at], after[:, :at], atol=1e-12, rtol=0)
    assert not torch.equal(before[:, at], after[:, at])


@settings(max_examples=40, deadline=None)
@given(architectures())
def test_the_parameters_of_any_architecture_are_counted(arch):
    counted = sum(p.numel() for p in Decoder(arch).parameters())
    assert counted == arch.parameter_count()


@settings(max_examples=30, deadline=None)
@given(architectures(), st.integers(1, 9))
def test_taps_of_any_architecture_add_up(arch, count):
    decoder, seen = decoder_of(arch), {}
    with torch.inference_mode():
        out = decoder(
            tokens_of(arch, 2, count),
            tap=lambda layer, name, tensor: seen.__setitem__((layer, name), tensor),
        )
    for layer in range(arch.num_layers):
        inside = seen[layer, "layer_input"] + seen[layer, "attn_out"]
        torch.testing.assert_close(inside, seen[layer, "attn_residual"])
        after = seen[layer, "attn_residual"] + seen[layer, "mlp_out"]
        last = layer == arch.num_layers - 1
        torch.testing.assert_close(after, out if last else seen[layer + 1, "layer_input"])


@torch.inference_mode()
def test_gemma_in_bfloat16_rounds_where_transformers_rounds():
    theirs, ours = (model.bfloat16() for model in make_pair(*SHAPES["gemma3"]))
    tokens = draw_tokens(2, 20)
    assert torch.equal(ours.embed(tokens), theirs.model.embed_tokens(tokens))
    found, expected = ours.logits(ours(tokens)).float(), theirs(tokens).logits.float()
    assert (found - expected).norm() / expected.norm() < 0.02


@torch.inference_mode()
def test_a_late_start_uses_the_cache_of_its_own_layers(decoder):
    """Restart at layer 1, token 5: the layers below are not run, their caches not read."""
    tokens = draw_tokens(1, 11)
    boundary = {}
    cache = new_cache(decoder)
    expected = decoder(
        tokens,
        cache=cache,
        tap=lambda layer, name, x: boundary.setdefault((layer, name), x),
    )
    upper = range(1, 3)
    kept = [cache.read(layer)[0].clone() for layer in range(3)]
    cache.truncate(5, layers=upper)
    found = decoder(hidden=boundary[1, "layer_input"][:, 5:], cache=cache, layers=upper)
    close(found, expected[:, 5:])
    for layer in range(3):
        close(cache.read(layer)[0], kept[layer])


@torch.inference_mode()
def test_taps_see_what_the_layer_computes(decoder):
    tokens, seen = draw_tokens(2, 6), {}

    def tap(layer, name, tensor):
        seen[layer, name] = tensor.clone()

    cache = new_cache(decoder, batch=2)
    out = decoder(tokens, cache=cache, tap=tap)
    names = [
        "layer_input",
        "attn_in",
        "k_raw",
        "v",
        "attn_out",
        "attn_residual",
        "mlp_in",
        "mlp_out",
    ]
    assert list(seen) == [(layer, name) for layer in range(3) for name in names]
    for layer in range(3):
        block = decoder.layers[layer]
        close(seen[layer, "attn_in"], block.input_layernorm(seen[layer, "layer_input"]))
        close(seen[layer, "k_raw"].flatten(2), block.self_attn.k_proj(seen[layer, "attn_in"]))
        close(seen[layer, "v"].transpose(1, 2), cache.read(layer)[1])
        close(seen[layer, "layer_input"] + seen[layer, "attn_out"], seen[layer, "attn_residual"])
        close(block.mlp(seen[layer, "mlp_in"]), seen[layer, "mlp_out"])
        after = seen[layer, "attn_residual"] + seen[layer, "mlp_out"]
        close(after, seen[layer + 1, "layer_input"] if layer < 2 else out)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 2),
    st.sampled_from([(1, 1), (4, 1), (4, 2)]),
    st.integers(1, 7),
    st.integers(0, 9),
)
def test_attention_equals_its_definition(batch, heads, tokens, past):
    q_heads, kv_heads = heads
    generator = torch.Generator().manual_seed(tokens * 10 + past)
    q = torch.randn(batch, q_heads, tokens, 8, generator=generator)
    k, v = torch.randn(2, batch, kv_heads, past + tokens, 8, generator=generator).unbind()
    wide_k, wide_v = (x.repeat_interleave(q_heads // kv_heads, 1) for x in (k, v))
    scores = q @ wide_k.mT / 8**0.5
    scores += torch.full((tokens, past + tokens), -torch.inf).triu(past + 1)
    expected = scores.softmax(-1) @ wide_v
    close(attend(q, k, v), expected)
    close(attend(q.requires_grad_(), k, v), expected)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([(1, 1), (4, 1), (4, 2)]),
    st.integers(1, 14),
    st.integers(0, 9),
    st.integers(1, 12),
)
def test_attention_within_a_window_equals_its_definition(heads, tokens, past, window):
    q_heads, kv_heads = heads
    generator = torch.Generator().manual_seed(tokens * 10 + past)
    q = torch.randn(2, q_heads, tokens, 8, generator=generator)
    k, v = torch.randn(2, 2, kv_heads, past + tokens, 8, generator=generator).unbind()
    wide_k, wide_v = (x.repeat_interleave(q_heads // kv_heads, 1) for x in (k, v))
    query, key = torch.arange(past, past + tokens)[:, None], torch.arange(past + tokens)
    unseen = (key > query) | (key <= query - window)
    scores = (q @ wide_k.mT / 8**0.5).masked_fill(unseen, -torch.inf)
    expected = scores.softmax(-1) @ wide_v
    close(attend_near(q, k, v, window), expected)
    close(attend_near(q.requires_grad_(), k, v, window), expected)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([(1, 1), (4, 1), (4, 2)]),
    st.integers(1, 14),
    st.integers(0, 9),
    st.none() | st.integers(1, 12),
    st.sampled_from([(1, 1, 1), (2, 4, 16), (1, 4, 1)]),
    st.sampled_from([1, 3, 256]),
)
def test_explicit_attention_equals_its_definition(heads, tokens, past, window, shape, at_once):
    """With a bias of any shape, in blocks of any size; without one it is the fast attention."""
    q_heads, kv_heads = heads
    generator = torch.Generator().manual_seed(tokens * 10 + past)
    keys = past + tokens
    q = torch.randn(2, q_heads, tokens, 8, generator=generator)
    k, v = torch.randn(2, 2, kv_heads, keys, 8, generator=generator).unbind()
    batch, bias_heads, queries = shape
    size = (batch, min(bias_heads, q_heads), queries, keys)
    bias = torch.randn(size, generator=generator)
    wide_k, wide_v = (x.repeat_interleave(q_heads // kv_heads, 1) for x in (k, v))
    query, key = torch.arange(past, keys)[:, None], torch.arange(keys)
    unseen = key > query if window is None else (key > query) | (key <= query - window)
    scores = q @ wide_k.mT / 8**0.5 + bias[:, :, -tokens:]
    shares = scores.masked_fill(unseen, -torch.inf).softmax(-1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ember.model.decoder.QUERIES_AT_ONCE", at_once)
        found, mass = attend_explicitly(q, k, v, bias, window)
        plain, plain_mass = attend_explicitly(q, k, v, window=window)
    close(found, shares @ wide_v)
    close(mass, shares.sum(2))
    close(plain, attend(q, k, v) if window is None else attend_near(q, k, v, window))
    close(plain_mass.sum(-1), torch.full((2, q_heads), float(tokens)))


class Curious(ContiguousCache):
    """Asks for attention mass, and gives a bias if there is one."""

    wants_mass = True
    bias = None

    def update(self, layer, k, v, rotation, source):
        self.seen = getattr(self, "seen", {}) | {layer: source}
        return KVRead(*super().update(layer, k, v, rotation, source)[:2], self.bias)

    def observe(self, layer, mass):
        self.mass = getattr(self, "mass", {}) | {layer: mass}


@settings(max_examples=40, deadline=None)
@given(architectures(), st.integers(1, 9), st.integers(0, 9), st.integers(1, 9))
def test_a_cache_is_told_what_it_asks_for(arch, tokens, past, last):
    """Outputs stay, mass is one a query, and `source` is what keys were projected from."""
    decoder, prompt = decoder_of(arch), tokens_of(arch, 2, past + tokens)
    with torch.inference_mode():
        plain = new_cache(decoder, 2, dtype=torch.float64)
        curious = Curious(arch, 2, 64, dtype=torch.float64)
        sources = {}
        for cache in (plain, curious) if past else ():
            decoder(prompt[:, :past], cache=cache)
        expected = decoder(
            prompt[:, past:],
            cache=plain,
            last=last,
            tap=lambda layer, name, x: name == "attn_in" and sources.__setitem__(layer, x),
        )
        found = decoder(prompt[:, past:], cache=curious, last=last)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
    for layer in range(arch.num_layers):
        queries = min(last, tokens) if layer == arch.num_layers - 1 else tokens
        mass = curious.mass[layer]
        assert mass.shape == (2, arch.num_heads, past + tokens)
        torch.testing.assert_close(mass.sum(-1), torch.full_like(mass[..., 0], float(queries)))
        torch.testing.assert_close(curious.seen[layer], sources[layer], atol=1e-9, rtol=1e-9)


@torch.inference_mode()
def test_a_bias_of_minus_infinity_hides_a_token(decoder):
    """Hiding all tokens of a prefix leaves what the rest gives at its own positions."""
    tokens = draw_tokens(1, 9)
    cache = Curious(decoder.arch, 1, 16)
    decoder(tokens[:, :4], cache=cache)
    cache.bias = torch.where(torch.arange(9) < 4, -torch.inf, 0.0).view(1, 1, 1, 9)
    found = decoder(tokens[:, 4:], cache=cache)
    close(found, decoder(tokens[:, 4:], positions=torch.arange(4, 9)))
    assert cache.mass[0][..., :4].sum() == 0


def test_a_small_share_of_a_large_value_is_kept_in_half_precision():
    """Of 2001 keys that score alike each has so little of the mass that 1 - share rounds it off."""
    q, k = torch.zeros(1, 1, 4, 8), torch.zeros(1, 1, 2004, 8)
    v = torch.zeros(1, 1, 2004, 8)
    v[:, :, 2000] = 1000.0  # the first new token's own value
    out = attend(q.bfloat16(), k.bfloat16(), v.bfloat16()).float()
    torch.testing.assert_close(out, attend(q, k, v), rtol=0.02, atol=0.0)
    assert 0.49 < out[0, 0, 0, 0] < 0.51


@settings(max_examples=40, deadline=None)
@given(
    architectures(),
    st.integers(1, 8),
    st.integers(1, 10),
    st.integers(0, 3),
    st.integers(0, 5),
)
def test_the_last_tokens_alone_are_the_same(arch, tokens, last, first_layer, past):
    """Outputs of the last tokens and the caches of all do not depend on what else is computed."""
    decoder, prompt = decoder_of(arch), tokens_of(arch, 2, past + tokens)
    first_layer = min(first_layer, arch.num_layers - 1)
    layers = range(first_layer, arch.num_layers)
    with torch.inference_mode():
        hidden = decoder(prompt, layers=range(first_layer))
        whole, part = (new_cache(decoder, 2, dtype=torch.float64) for _ in range(2))
        for cache in (whole, part):
            decoder(hidden=hidden[:, :past], cache=cache, layers=layers)
        expected = decoder(hidden=hidden[:, past:], cache=whole, layers=layers)[:, -last:]
        close(decoder(hidden=hidden[:, past:], cache=part, layers=layers, last=last), expected)
        for layer in layers:
            close(part.read(layer), whole.read(layer))


def test_the_parameters_are_those_the_architecture_counts(pair):
    ours = pair[1]
    assert sum(p.numel() for p in ours.parameters()) == ours.arch.parameter_count()


def test_tokens_and_hidden_exclude_each_other(decoder):
    with pytest.raises(ValueError, match="either tokens or hidden"):
        decoder()
    with pytest.raises(ValueError, match="either tokens or hidden"):
        decoder(draw_tokens(1, 2), hidden=torch.zeros(1, 2, 48))
