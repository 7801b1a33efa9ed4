"""GGUF: every tensor comes back, and an independent reader computes the same from the file."""

import json
import re

import pytest
import torch

from ember.model.architecture import Architecture
from ember.model.checkpoint import load_decoder, random_decoder, save_decoder
from ember.model.families import FAMILIES
from ember.model.gguf import BadGguf, check_gguf, export_gguf
from ember.model.rope import RopeScaling
from ember.text.tokenizer import save_tokenizer, train_bpe
from tests.tiny import decoder_of

TEXTS = ["def add(a, b):\n    return a + b\n", "the quick brown fox, 12345 times"] * 5
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "vocab_size": 300,
    "max_positions": 64,
    "rope_theta": 1e5,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


FAMILY = {
    "gemma3_text": {"num_layers": 7, "sliding_window": 6, "head_dim": 32},
    "gpt_neox": {"num_kv_heads": 4, "head_dim": 8, "rope_fraction": 0.5},
    "llama": {"rope_scaling": RopeScaling(8.0, 1.0, 4.0, 32)},
}


def save(folder, seed=0, **changes):
    model_type = changes.get("model_type", "qwen3")
    fields = {"model_type": model_type} | SIZES | FAMILY.get(model_type, {}) | changes
    save_decoder(decoder_of(Architecture.make(**fields), seed, scale=0.1), folder)
    save_tokenizer(train_bpe(TEXTS, 280), folder)
    return folder


@pytest.fixture
def model(tmp_path):
    return save(tmp_path / "model", tie_embeddings=True)


@pytest.mark.parametrize("dtype", ["F32", "F16"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_tensor_comes_back(tmp_path, dtype, tied):
    folder = save(tmp_path / "model", tie_embeddings=tied)
    path = export_gguf(folder, folder, tmp_path / "out" / "model.gguf", dtype=dtype)
    assert check_gguf(path, folder) == 2 * 11 + (2 if tied else 3)


@pytest.mark.parametrize("dtype", ["F32", "F16"])
@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_every_tensor_has_the_name_that_llama_cpp_knows(tmp_path, model_type, dtype):
    import gguf

    folder = save(tmp_path / "model", model_type=model_type, tie_embeddings=False)
    path = export_gguf(folder, folder, tmp_path / "model.gguf", dtype=dtype)
    reader = gguf.GGUFReader(path)
    name = reader.get_field("general.architecture").contents()
    [arch] = [known for known, value in gguf.MODEL_ARCH_NAMES.items() if value == name]
    known = {gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[arch]}
    found = {tensor.name.rpartition(".")[0] for tensor in reader.tensors}
    assert {re.sub(r"blk\.\d+", "blk.{bid}", stem) for stem in found} <= known
    assert check_gguf(path, folder) == len(reader.tensors)


# Its reader takes Qwen3's head dimension for 128 and Gemma's query_pre_attn_scalar for 256,
# whatever the file says, overlooks Llama's rotary scaling, and does not read GPT-NeoX.
READ = [
    ("qwen3", {"head_dim": 128}),
    ("qwen2", {"head_dim": 8}),
    ("llama", {"rope_scaling": None}),
    ("gemma3_text", {"head_dim": 256}),
]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("model_type", "changes"), READ)
def test_transformers_reads_the_same_model_and_tokenizer_from_the_file(
    tmp_path, model_type, changes, tied
):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = save(tmp_path / "model", model_type=model_type, tie_embeddings=tied, **changes)
    export_gguf(folder, folder, tmp_path / "model.gguf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf").eval()
    ours = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokens = torch.arange(20)[None]
    with torch.inference_mode():
        torch.testing.assert_close(theirs(tokens).logits, ours(tokens).logits, atol=1e-4, rtol=0)
    if model_type == "gemma3_text":
        return  # it expects another kind of tokenizer with Gemma's name
    tokenizers = [
        AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf"),
        AutoTokenizer.from_pretrained(folder),
    ]
    first, second = (t("the brown fox returns 45", add_special_tokens=False) for t in tokenizers)
    assert first["input_ids"] == second["input_ids"]


def test_the_file_names_the_split_and_the_token_types(model, tmp_path):
    from gguf import GGUFReader, TokenType

    reader = GGUFReader(export_gguf(model, model, tmp_path / "model.gguf"))
    assert reader.get_field("general.architecture").contents() == "qwen3"
    assert reader.get_field("tokenizer.ggml.model").contents() == "gpt2"
    assert reader.get_field("tokenizer.ggml.pre").contents() == "gpt-2"
    tokens = reader.get_field("tokenizer.ggml.tokens").contents()
    types = reader.get_field("tokenizer.ggml.token_type").contents()
    assert (len(tokens), len(types)) == (300, 300)
    assert types[tokens.index("<|endoftext|>")] == TokenType.CONTROL
    assert (types[-1], tokens[-1]) == (TokenType.UNUSED, "[PAD299]")
    assert reader.get_field("tokenizer.ggml.eos_token_id").contents() == 0


def test_another_model_is_noticed(model, tmp_path):
    path = export_gguf(model, model, tmp_path / "model.gguf")
    with pytest.raises(BadGguf, match="is not the model's"):
        check_gguf(path, save(tmp_path / "other", seed=1, tie_embeddings=True))
    with pytest.raises(BadGguf, match=r"qwen3\.rope\.freq_base"):
        check_gguf(path, save(tmp_path / "other", tie_embeddings=True, rope_theta=1e4))
    with pytest.raises(BadGguf, match=r"output\.weight"):
        check_gguf(path, save(tmp_path / "other", tie_embeddings=False))


def test_packed_matrices_come_back_and_are_near_the_weights(model, tmp_path):
    from gguf import GGMLQuantizationType, GGUFReader
    from gguf.quants import dequantize

    check_gguf(export_gguf(model, model, tmp_path / "q4.gguf", dtype="Q4_0"), model)
    found = {one.name: one for one in GGUFReader(tmp_path / "q4.gguf").tensors}
    packed = found["blk.1.ffn_down.weight"]
    exact = load_decoder(model).layers[1].mlp.down_proj.weight.detach().numpy()
    read = dequantize(packed.data, GGMLQuantizationType.Q4_0)
    assert packed.data.nbytes == exact.size * 4.5 / 8
    assert 0.02 < abs(read - exact).max() / abs(exact).max() < 0.15
    assert found["output_norm.weight"].tensor_type.name == "F32"
    odd = save(tmp_path / "odd", intermediate_size=48)
    with pytest.raises(BadGguf, match="down_proj"):
        export_gguf(odd, odd, tmp_path / "odd.gguf", dtype="Q4_0")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"x" * 100])
def test_a_foreign_or_truncated_file_is_refused(model, tmp_path, content):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(BadGguf, match="truncated or no GGUF"):
        check_gguf(path, model)
    with pytest.raises(BadGguf, match="missing"):
        check_gguf(tmp_path / "nowhere.gguf", model)


def test_packed_and_paired_elements_lie_as_llama_cpp_reads_them(tmp_path):
    """GPT-NeoX: all queries, then all keys, then all values. Llama: pairs side by side, and what
    its rotary scaling divides each frequency by."""
    from gguf import GGUFReader

    def read(model_type):
        folder = save(tmp_path / model_type, model_type=model_type, tie_embeddings=True)
        path = export_gguf(folder, folder, tmp_path / f"{model_type}.gguf")
        return load_decoder(folder), {
            t.name: torch.tensor(t.data) for t in GGUFReader(path).tensors
        }

    decoder, found = read("gpt_neox")
    attention = decoder.layers[1].self_attn
    for kind in ("weight", "bias"):
        rows = [getattr(p, kind) for p in (attention.q_proj, attention.k_proj, attention.v_proj)]
        assert torch.equal(found[f"blk.1.attn_qkv.{kind}"], torch.cat(rows))
    assert torch.equal(found["output.weight"], found["token_embd.weight"]), "it ties none of these"
    decoder, found = read("llama")
    weight = decoder.layers[1].self_attn.k_proj.weight  # (2 heads of 16, 32)
    paired = found["blk.1.attn_k.weight"]
    assert torch.equal(paired[16 + 2 * 3], weight[16 + 3])
    assert torch.equal(paired[16 + 2 * 3 + 1], weight[16 + 3 + 8])
    factors = found["rope_freqs.weight"]
    assert factors.shape == (8,)
    assert (factors[0].item(), factors[-1].item()) == pytest.approx((1.0, 8.0))


@pytest.mark.parametrize(
    ("model_type", "change", "message"),
    [
        ("qwen3", {"qkv_bias": True, "o_bias": True}, "attention biases"),
        ("qwen3", {"rope_scaling": RopeScaling(8.0, 1.0, 4.0, 32)}, "llama3 rotary scaling"),
        ("qwen2", {"rope_scaling": RopeScaling(8.0)}, "linear rotary scaling"),
        ("llama", {"mlp_bias": True}, "MLP biases"),
        ("llama", {"activation": "gelu"}, "activation gelu"),
        ("gemma3_text", {"activation": "gelu"}, "activation gelu"),
        ("gemma3_text", {"query_scalar": 8}, "query_scalar"),
        ("gemma3_text", {"sliding_layers": (1,)}, "sliding layers"),
        ("gemma3_text", {"rope_local_theta": 1e3}, "rotary base of sliding layers"),
        ("gpt_neox", {"qkv_bias": False, "o_bias": False}, "attention biases"),
    ],
)
def test_what_gguf_cannot_express_is_refused(tmp_path, model_type, change, message):
    folder = save(tmp_path / "model", model_type=model_type, **change)
    with pytest.raises(BadGguf, match=f"{message} of this {model_type}"):
        export_gguf(folder, folder, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


def test_numbers_beyond_f16_are_refused(model, tmp_path):
    arch = Architecture.make(model_type="qwen3", **SIZES)
    decoder = random_decoder(arch)
    with torch.no_grad():
        decoder.layers[1].mlp.up_proj.weight[0, 0] = 1e6
    folder = save_decoder(decoder, tmp_path / "large")
    with pytest.raises(BadGguf, match=r"up_proj\.weight is too large"):
        export_gguf(folder, model, tmp_path / "model.gguf", dtype="F16")
    with pytest.raises(BadGguf, match="'Q9'"):
        export_gguf(folder, model, tmp_path / "model.gguf", dtype="Q9")


def test_unfit_tokenizers_are_refused(model, tmp_path):
    path = model / "tokenizer.json"
    content = json.loads(path.read_text())
    split = content | {"pre_tokenizer": {"type": "Whitespace"}}
    path.write_text(json.dumps(split))
    with pytest.raises(BadGguf, match=r"no known name in GGUF \(\['Whitespace'\]\)"):
        export_gguf(model, model, tmp_path / "model.gguf")
    content["model"]["vocab"]["zzz"] = 300
    path.write_text(json.dumps(content))
    with pytest.raises(BadGguf, match="has token 300, but the model has 300"):
        export_gguf(model, model, tmp_path / "model.gguf")
    path.unlink()
    with pytest.raises(BadGguf, match="is missing"):
        export_gguf(model, model, tmp_path / "model.gguf")
