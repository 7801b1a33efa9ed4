"""Packed weights on the fast backends: what they compute, and that nothing else runs for them."""

import pytest
import torch

from ember.backends.compiled import native_step
from ember.backends.packing import PackedDecoder
from ember.backends.sampling import SamplingParams
from ember.backends.select import Case, Unsupported, select
from ember.backends.threads import restored_threads
from ember.engine.engine import Engine
from ember.model.packed import PACKED, quantise_decoder
from tests.backends.steps import backend_of, step_through
from tests.tiny import draw, wild

SIZES = {"hidden_size": 192, "intermediate_size": 448, "num_heads": 4, "head_dim": 48}


def packed(name, skip=("lm_head",), dtype=torch.float32, architecture="qwen3", **fields):
    decoder = wild(architecture, dtype, scale=0.1, **SIZES | fields)
    quantise_decoder(decoder, name, skip)
    return decoder


@torch.inference_mode()
def steps_of(decoder, tokens, threads=1):
    with restored_threads():
        torch.set_num_threads(threads)
        return step_through(backend_of("compiled", decoder, rows=7), tokens, 5)


@pytest.fixture(params=["", "-mno-avx512f", "-mno-avx512f -mno-avx2"])
def compiler(request, monkeypatch, tmp_path_factory):
    """The C compiler for this processor, and for those with narrower vectors."""
    monkeypatch.setenv("CC", f"cc {request.param}")
    monkeypatch.setenv("EMBER_CACHE", str(tmp_path_factory.getbasetemp() / "native"))
    native_step._library.cache_clear()
    yield request.param
    native_step._library.cache_clear()


@pytest.mark.parametrize("skip", [(), ("lm_head",)])
@pytest.mark.parametrize("name", sorted(PACKED))
@torch.inference_mode()
def test_the_compiled_step_computes_what_the_dequantised_weights_do(name, skip, compiler):
    decoder, tokens = packed(name, skip), draw(5, 20)
    expected = decoder.double().logits(decoder(tokens))[:, 4:].transpose(0, 1)
    found = steps_of(packed(name, skip), tokens)
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["qwen2", "gemma3_text", "gpt_neox"])
@torch.inference_mode()
def test_every_architecture_runs_packed(architecture):
    fields = {"num_kv_heads": 4} if architecture == "gpt_neox" else {}
    sizes = {"hidden_size": 80, "intermediate_size": 144} | fields  # rows end within 32 weights
    decoder, tokens = packed("nvfp4", (), architecture=architecture, **sizes), draw(3, 16)
    expected = decoder.double().logits(decoder(tokens))[:, 4:].transpose(0, 1)
    found = steps_of(packed("nvfp4", (), architecture=architecture, **sizes), tokens)
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(PACKED))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_neither_the_batch_nor_threads_change_a_bit(name, dtype):
    decoder, tokens = packed(name, (), dtype), draw(7, 16)
    whole = steps_of(decoder, tokens)
    for rows in ([0], [3, 4], [6, 0, 2], [1, 2, 3, 4, 5]):
        assert torch.equal(steps_of(decoder, tokens[rows]), whole[:, rows])
    made, steps = backend_of("compiled", decoder, rows=7), []
    with torch.inference_mode():
        step_through(made, tokens[:, :9], 9)
        made.sample()
        for threads in (1, 2):
            with restored_threads():
                torch.set_num_threads(threads)
                made.advance()  # the same tokens at the same positions
            made._own[:7] -= 1
            steps.append(made.logits.clone())
    assert torch.equal(*steps)


def test_parts_of_one_product_keep_their_own_scales():
    decoder = packed("nvfp4")
    attention = decoder.layers[0].self_attn
    with torch.no_grad():
        attention.k_proj.tensor_scale.mul_(7)
    alone = torch.cat(
        [p.matrix.dense() for p in (attention.q_proj, attention.k_proj, attention.v_proj)]
    )
    stacked = PackedDecoder(decoder).layers[0].qkv
    assert torch.equal(stacked.dense(), alone)
    with torch.no_grad():
        attention.k_proj.tensor_scale.mul_(2)  # a view: it shows
    assert torch.equal(
        stacked.dense()[stacked.ends[0] : stacked.ends[1]], attention.k_proj.matrix.dense()
    )


def test_mixed_formats_in_one_product_are_refused_with_a_remedy():
    decoder = packed("nvfp4", ("lm_head", "k_proj"))
    with pytest.raises(TypeError, match="Quantise all layers that run together"):
        PackedDecoder(decoder)


def test_greedy_tokens_are_those_of_the_eager_backend_and_the_path_is_told(caplog):
    decoder = packed("nvfp4")
    prompt = draw(1, 9)[0].tolist()
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    engines = {name: Engine(decoder, capacity=32, backend=name) for name in ("compiled", "eager")}
    tokens = [engine.generate([prompt], params)[0][0].tokens for engine in engines.values()]
    assert tokens[0] == tokens[1]
    [warning] = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert "nvfp4 weights become dense" in warning  # the eager one's alone
    assert Engine(decoder, capacity=32, require_native=True).select(1).name == "compiled"


def test_native_is_required_or_nothing_runs():
    decoder = packed("nvfp4")
    case = Case.of(decoder)
    assert case.formats == {"dense", "nvfp4"}
    assert select(case, require_native=True).name == "compiled"
    with pytest.raises(Unsupported, match=r"no kernel reads nvfp4 weights(.|\n)*require_native"):
        Engine(decoder, capacity=32, backend="eager", require_native=True).select(1)
    half = Case.of(decoder.half())
    assert select(half).name == "eager"
    with pytest.raises(Unsupported, match=r"no compiled code for torch\.float16"):
        select(half, require_native=True)
