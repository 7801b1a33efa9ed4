"""The same weights as a GGUF file, which llama.cpp and its relatives read (P1-0.3).

Contract. `export_gguf` writes one file with architecture, tokenizer and every tensor of a Qwen3
model; `check_gguf` reads it back and compares all of that with the model directory. F32 keeps
float32, bfloat16 and float16 weights exactly; F16 rounds matrices and keeps vectors in F32.
"""

import json
import logging
from pathlib import Path

import numpy as np

from ember.model.architecture import Architecture
from ember.model.checkpoint import load_decoder
from ember.model.decoder import Decoder
from ember.records.atomic import atomic_file
from ember.records.errors import EmberError

log = logging.getLogger(__name__)

# Our names (without ".weight") and GGUF's; {} is the layer.
TENSORS = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "layers.{}.input_layernorm": "blk.{}.attn_norm",
    "layers.{}.self_attn.q_proj": "blk.{}.attn_q",
    "layers.{}.self_attn.k_proj": "blk.{}.attn_k",
    "layers.{}.self_attn.v_proj": "blk.{}.attn_v",
    "layers.{}.self_attn.o_proj": "blk.{}.attn_output",
    "layers.{}.self_attn.q_norm": "blk.{}.attn_q_norm",
    "layers.{}.self_attn.k_norm": "blk.{}.attn_k_norm",
    "layers.{}.post_attention_layernorm": "blk.{}.ffn_norm",
    "layers.{}.mlp.gate_proj": "blk.{}.ffn_gate",
    "layers.{}.mlp.up_proj": "blk.{}.ffn_up",
    "layers.{}.mlp.down_proj": "blk.{}.ffn_down",
}
# How text is split before the merges, by llama.cpp's name and a piece of the regular expression.
QWEN_SPLIT = r"\p{N}|"


class BadGguf(EmberError):
    """A model that cannot be exported, or a file that is not the model's."""


def export_gguf(
    model_dir: str | Path,
    tokenizer_dir: str | Path | None,
    path: str | Path,
    *,
    dtype: str = "F32",
) -> Path:
    """Writes a Qwen3 model directory and its byte-level BPE tokenizer as one GGUF file.

    `dtype` is F32 or F16. Without a tokenizer (None) the file has no vocabulary, only its size:
    llama.cpp then runs it on token ids. Raises `BadGguf` for what the file could not express.
    """
    from gguf import GGUFWriter

    path = Path(path)
    decoder = load_decoder(model_dir)
    _refuse(decoder.arch)
    tokenizer = tokenizer_dir and _read_tokenizer(Path(tokenizer_dir), decoder.arch.vocab_size)
    tensors = _tensors(decoder, dtype)
    with atomic_file(path) as part:
        writer = GGUFWriter(part, "qwen3")
        writer.add_name(Path(model_dir).name)
        _add_architecture(writer, decoder.arch, dtype)
        if tokenizer:
            _add_tokenizer(writer, decoder.arch, tokenizer)
        else:
            writer.add_tokenizer_model("no_vocab")
        for name, array in tensors.items():
            writer.add_tensor(name, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    log.info("wrote %s: %d tensors, %s, %d bytes", path, len(tensors), dtype, path.stat().st_size)
    return path


def check_gguf(path: str | Path, model_dir: str | Path) -> int:
    """Compares a GGUF file with a model directory; returns the number of tensors compared.

    Every tensor must be there and equal (matrices of an F16 file after rounding), and the metadata
    must say the same architecture. Raises `BadGguf` naming the first difference.
    """
    from gguf import GGUFReader

    path = Path(path)
    try:
        reader = GGUFReader(path)
    except (OSError, ValueError, IndexError) as error:
        raise BadGguf(
            f"{path} is missing, truncated or no GGUF file ({error}).\n"
            "Delete it and export the model again."
        ) from None
    decoder = load_decoder(model_dir)
    found = {tensor.name: tensor for tensor in reader.tensors}
    dtype = "F16" if any(tensor.tensor_type.name == "F16" for tensor in reader.tensors) else "F32"
    for key, value in _metadata(decoder.arch).items():
        field = reader.get_field(f"qwen3.{key}")
        if field is None or not np.isclose(field.contents(), value, rtol=1e-6):
            raise _differs(path, f"qwen3.{key}")
    expected = _tensors(decoder, dtype)
    if different := sorted(found.keys() ^ expected.keys()):
        raise _differs(path, different[0])
    for name, array in expected.items():
        data = found[name].data
        if data.shape != array.shape or not np.array_equal(data, array):
            raise _differs(path, name)
    return len(expected)


def _differs(path: Path, what: str) -> BadGguf:
    return BadGguf(
        f"{what} in {path} is not the model's.\nDelete the file and export the model again."
    )


def _refuse(arch: Architecture) -> None:
    if arch.model_type != "qwen3" or arch.qkv_bias or arch.o_bias or arch.rope_scaling:
        raise BadGguf(
            f"GGUF export supports qwen3 without attention biases and rotary scaling, not this "
            f"{arch.model_type}.\nConvert it with llama.cpp's convert_hf_to_gguf.py."
        )


def _metadata(arch: Architecture) -> dict[str, float]:
    """Metadata keys (below `qwen3.`) that fix the computation."""
    return {
        "context_length": arch.max_positions,
        "embedding_length": arch.hidden_size,
        "block_count": arch.num_layers,
        "feed_forward_length": arch.intermediate_size,
        "attention.head_count": arch.num_heads,
        "attention.head_count_kv": arch.num_kv_heads,
        "attention.key_length": arch.head_dim,
        "attention.value_length": arch.head_dim,
        "attention.layer_norm_rms_epsilon": arch.norm_eps,
        "rope.freq_base": arch.rope_theta,
        "vocab_size": arch.vocab_size,
    }


def _add_architecture(writer, arch: Architecture, dtype: str) -> None:
    from gguf import LlamaFileType

    for key, value in _metadata(arch).items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"qwen3.{key}", value)
    writer.add_file_type(LlamaFileType.ALL_F32 if dtype == "F32" else LlamaFileType.MOSTLY_F16)


def _tensors(decoder: Decoder, dtype: str) -> dict[str, np.ndarray]:
    """Arrays by GGUF name, in the file's number format."""
    if dtype not in ("F32", "F16"):
        raise BadGguf(f"number format {dtype!r} is not known.\nChoose F32 or F16.")
    arrays = {}
    for name, parameter in decoder.named_parameters():
        stem = name.removesuffix(".weight")
        parts = stem.split(".")
        layer = parts[1] if parts[0] == "layers" else ""
        pattern = ".".join(["layers", "{}", *parts[2:]]) if layer else stem
        array = parameter.detach().float().numpy()
        if dtype == "F16" and array.ndim > 1:
            with np.errstate(over="ignore"):
                array = array.astype(np.float16)
            if not np.isfinite(array).all():
                raise BadGguf(f"{name} is too large for F16.\nExport it as F32.")
        arrays[TENSORS[pattern].format(layer) + ".weight"] = array
    return arrays


def _read_tokenizer(folder: Path, vocab_size: int) -> dict:
    """Tokens, their types, merges and the split's name, from tokenizer.json."""
    from gguf import TokenType

    path = folder / "tokenizer.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        model = content["model"]
        if model["type"] != "BPE":
            raise BadGguf(f"{path} is a {model['type']} tokenizer.\nOnly byte-level BPE is known.")
        vocabulary, merges = model["vocab"], model["merges"]
    except (OSError, ValueError, KeyError) as error:
        raise BadGguf(
            f"{path} is missing or no tokenizer ({error}).\nGive the model's tokenizer directory."
        ) from None
    tokens = [f"[PAD{index}]" for index in range(vocab_size)]  # rows without a token
    types = [int(TokenType.UNUSED)] * vocab_size
    added = {token["content"]: token for token in content.get("added_tokens", ())}
    for text, index in (vocabulary | {text: t["id"] for text, t in added.items()}).items():
        if index >= vocab_size:
            raise BadGguf(
                f"{path} has token {index}, but the model has {vocab_size}.\n"
                "Give the tokenizer that the model was trained with."
            )
        tokens[index] = text
        special = added.get(text, {}).get("special")
        kind = TokenType.NORMAL if special is None else TokenType.USER_DEFINED
        types[index] = int(TokenType.CONTROL if special else kind)
    pairs = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    return {"tokens": tokens, "types": types, "merges": pairs, "split": _split(content, path)}


def _split(content: dict, path: Path) -> str:
    """llama.cpp's name of how the tokenizer splits text."""
    splitter = content.get("pre_tokenizer") or {}
    parts = splitter.get("pretokenizers", [splitter])
    kinds = [part.get("type") for part in parts]
    if kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Split", "ByteLevel"] and QWEN_SPLIT in str(parts[0].get("pattern")):
        return "qwen2"
    raise BadGguf(
        f"{path} splits text in a way that has no known name in GGUF ({kinds}).\n"
        "Use a tokenizer trained by this workflow, or Qwen's."
    )


def _add_tokenizer(writer, arch: Architecture, tokenizer: dict) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(tokenizer["split"])
    writer.add_token_list(tokenizer["tokens"])
    writer.add_token_types(tokenizer["types"])
    writer.add_token_merges(tokenizer["merges"])
    writer.add_add_bos_token(False)
    if arch.bos_token_id is not None:
        writer.add_bos_token_id(arch.bos_token_id)
    if arch.eos_token_ids:
        writer.add_eos_token_id(arch.eos_token_ids[0])
