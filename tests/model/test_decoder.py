"""Parity with Transformers in float32, and the decoder's own ways of running."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.cache.contiguous import ContiguousCache
from ember.model.architecture import Architecture, RopeScaling
from ember.model.decoder import Decoder, attend

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
SHAPES = {
    "qwen3-tied": ("qwen3", {"tie_embeddings": True}),
    "qwen3-untied": ("qwen3", {}),
    "qwen3-bias": ("qwen3", {"qkv_bias": True, "o_bias": True}),
    "qwen3-mha": ("qwen3", {"num_kv_heads": 4}),
    "qwen3-mqa": ("qwen3", {"num_kv_heads": 1, "rope_theta": 1e6}),
    "qwen2-tied": ("qwen2", {"tie_embeddings": True}),
    "llama-scaled": ("llama", {"rope_scaling": RopeScaling(8.0, 1.0, 4.0, 32), "head_dim": 12}),
    "llama-mlp-bias": ("llama", {"mlp_bias": True, "norm_eps": 1e-5}),
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
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.3)
    ours = Decoder(arch)
    state = {name.removeprefix("model."): value for name, value in theirs.state_dict().items()}
    if arch.tie_embeddings:
        state.pop("lm_head.weight")
    ours.load_state_dict(state)
    return theirs, ours.eval()


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
        k, v = cache.read(layer)
        close(k, kept.keys)
        close(v, kept.values)


@torch.inference_mode()
def test_decoding_token_by_token_equals_transformers(pair):
    theirs, ours = pair
    tokens = draw_tokens(2, 12)
    expected = theirs(tokens).logits
    cache = new_cache(ours, batch=2)
    steps = [ours.logits(ours(tokens[:, t : t + 1], cache=cache)) for t in range(12)]
    close(torch.cat(steps, 1), expected)


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
    gradients = {n.removeprefix("model."): p.grad for n, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        close(parameter.grad, gradients[name])
        parameter.grad = None
    theirs.zero_grad()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 3))
def test_chunked_prefill_equals_one_shot(decoder, chunks, batch):
    tokens = draw_tokens(batch, sum(chunks))
    with torch.inference_mode():
        whole, pieces = new_cache(decoder, batch), new_cache(decoder, batch)
        expected = decoder(tokens, cache=whole)
        found = torch.cat([decoder(c, cache=pieces) for c in tokens.split(chunks, 1)], 1)
        close(found, expected)
        for layer in range(decoder.arch.num_layers):
            close(pieces.read(layer), whole.read(layer))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 3), st.integers(0, 3))
def test_layer_ranges_compose(decoder, a, b):
    first, second = sorted((a, b))
    tokens = draw_tokens(2, 8)
    with torch.inference_mode():
        hidden = decoder.embed(tokens)
        for part in (range(first), range(first, second), range(second, 3)):
            hidden = decoder(hidden=hidden, layers=part)
        close(hidden, decoder(tokens))


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


def test_a_small_share_of_a_large_value_is_kept_in_half_precision():
    """Of 2001 keys that score alike each has so little of the mass that 1 - share rounds it off."""
    q, k = torch.zeros(1, 1, 4, 8), torch.zeros(1, 1, 2004, 8)
    v = torch.zeros(1, 1, 2004, 8)
    v[:, :, 2000] = 1000.0  # the first new token's own value
    out = attend(q.bfloat16(), k.bfloat16(), v.bfloat16()).float()
    torch.testing.assert_close(out, attend(q, k, v), rtol=0.02, atol=0.0)
    assert 0.49 < out[0, 0, 0, 0] < 0.51


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 8), st.integers(1, 10), st.integers(0, 3), st.integers(0, 5))
def test_the_last_tokens_alone_are_the_same(decoder, tokens, last, first_layer, past):
    """Outputs of the last tokens and the caches of all do not depend on what else is computed."""
    prompt, layers = draw_tokens(2, past + tokens), range(first_layer, 3)
    with torch.inference_mode():
        hidden = decoder(prompt, layers=range(first_layer))
        whole, part = new_cache(decoder, 2), new_cache(decoder, 2)
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
