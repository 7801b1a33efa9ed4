"""The same weights as a GGUF file, which llama.cpp and its relatives read (P1-0.3).

Contract. `export_gguf` writes one file with architecture, tokenizer and every tensor of a model;
`check_gguf` reads it back and compares all of that with the model directory. F32 keeps float32,
bfloat16 and float16 weights exactly (but for Gemma's norms, to which 1 is added); F16 rounds
matrices and keeps vectors in F32; Q4_0 packs matrices, embedding and head too, as llama.cpp does
with --pure. What llama.cpp would compute otherwise is refused, save that its
GELU is the tanh form: a Pythia's exact one is approximated.
"""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ember.model.architecture import Architecture
from ember.model.checkpoint import load_decoder
from ember.model.decoder import Decoder, rotary_frequencies
from ember.model.families import family_of, sliding_but_every
from ember.model.names import to_hf
from ember.records.atomic import atomic_file
from ember.records.errors import EmberError
from ember.records.foreign import Fields, read_object, shown

log = logging.getLogger(__name__)

# How text is split before the merges, by llama.cpp's name and a piece of the regular expression.
QWEN_SPLIT = r"\p{N}|"
# Number formats of matrices, by GGUF's names of such files; vectors are F32.
FILE_TYPES = {"Q4_0": "MOSTLY_Q4_0", "F16": "MOSTLY_F16", "F32": "ALL_F32"}


class BadGguf(EmberError):
    """A model that cannot be exported, or a file that is not the model's."""


def export_gguf(
    model_dir: str | Path,
    tokenizer_dir: str | Path | None,
    path: str | Path,
    *,
    dtype: str = "F32",
) -> Path:
    """Writes a model directory and its byte-level BPE tokenizer as one GGUF file.

    `dtype` is F32, F16 or Q4_0. Without a tokenizer (None) the file has no vocabulary, only its
    size: llama.cpp then runs it on token ids. Raises `BadGguf` for what the file cannot express.
    """
    from gguf import GGMLQuantizationType, GGUFWriter

    path = Path(path)
    decoder = load_decoder(model_dir)
    _refuse(decoder.arch)
    tokenizer = tokenizer_dir and _read_tokenizer(Path(tokenizer_dir), decoder.arch.vocab_size)
    tensors = _tensors(decoder, dtype)
    with atomic_file(path) as part:
        writer = GGUFWriter(part, _name(decoder.arch))
        writer.add_name(Path(model_dir).name)
        _add_architecture(writer, decoder.arch, dtype)
        if tokenizer:
            _add_tokenizer(writer, decoder.arch, tokenizer)
        else:
            writer.add_tokenizer_model("no_vocab")
        for name, array in tensors.items():
            packed = GGMLQuantizationType.Q4_0 if array.dtype == np.uint8 else None
            writer.add_tensor(name, array, raw_dtype=packed)
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
    kinds = {tensor.tensor_type.name for tensor in reader.tensors}
    dtype = next(name for name in FILE_TYPES if name in kinds)
    for key, value in _metadata(decoder.arch).items():
        full = f"{_name(decoder.arch)}.{key}"
        field = reader.get_field(full)
        if field is None or not _same(field.contents(), value):
            raise _differs(path, full)
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


def _same(found, value) -> bool:
    if isinstance(value, str | bool):
        return found == value
    return bool(np.isclose(found, value, rtol=1e-6))


def _name(arch: Architecture) -> str:
    """What GGUF calls the architecture's family."""
    return family_of(arch.model_type).gguf


def _refuse(arch: Architecture) -> None:
    """What the file could not say, or llama.cpp computes otherwise whatever the file says."""
    kind, gemma = arch.model_type, arch.model_type == "gemma3_text"
    activations = {"gemma3_text": ("gelu_tanh",), "gpt_neox": ("gelu", "gelu_tanh")}
    llama3 = arch.rope_scaling is not None and arch.rope_scaling.is_llama3
    faults = {
        "tensors": _name(arch) is None,
        "attention biases": (arch.qkv_bias, arch.o_bias)
        != {"qwen2": (True, False), "gpt_neox": (True, True)}.get(kind, (False, False)),
        "MLP biases": kind != "gpt_neox" and arch.mlp_bias,
        f"activation {arch.activation}": arch.activation not in activations.get(kind, ("silu",)),
        "llama3 rotary scaling": llama3 and kind != "llama",
        "linear rotary scaling": arch.rope_scaling is not None and not llama3 and not gemma,
        "query_scalar": arch.query_scalar is not None,
        "these sliding layers": gemma
        and arch.sliding_layers != sliding_but_every(6, arch.num_layers),
        "this rotary base of sliding layers": gemma and arch.rope_local_theta != 1e4,
    }
    fault = next((name for name, holds in faults.items() if holds), None)
    if fault is not None:
        raise BadGguf(
            f"GGUF export does not support {fault} of this {kind}.\n"
            "Try llama.cpp's convert_hf_to_gguf.py, and compare logits."
        )


def _metadata(arch: Architecture) -> dict[str, float | str | bool]:
    """Metadata keys (below the architecture's name) that fix the computation."""
    eps = "layer_norm_epsilon" if arch.norm == "layer" else "layer_norm_rms_epsilon"
    known = {
        "context_length": arch.max_positions,
        "embedding_length": arch.hidden_size,
        "block_count": arch.num_layers,
        "feed_forward_length": arch.intermediate_size,
        "attention.head_count": arch.num_heads,
        "attention.head_count_kv": arch.num_kv_heads,
        "attention.key_length": arch.head_dim,
        "attention.value_length": arch.head_dim,
        f"attention.{eps}": arch.norm_eps,
        "rope.freq_base": arch.rope_theta,
        "vocab_size": arch.vocab_size,
    }
    if arch.model_type in ("llama", "gpt_neox"):
        known["rope.dimension_count"] = arch.rotary_dim
    if arch.model_type == "gpt_neox":
        known["use_parallel_residual"] = arch.parallel_residual
    if arch.model_type == "gemma3_text":
        known["attention.sliding_window"] = arch.sliding_window
        if arch.rope_scaling is not None:
            known |= {
                "rope.scaling.type": "linear",
                "rope.scaling.factor": arch.rope_scaling.factor,
            }
    return known


def _add_architecture(writer, arch: Architecture, dtype: str) -> None:
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    adders = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
    }
    for key, value in _metadata(arch).items():
        adders[type(value)](f"{_name(arch)}.{key}", value)
    writer.add_file_type(LlamaFileType[FILE_TYPES[dtype]])
    writer.add_quantization_version(GGML_QUANT_VERSION)


def _tensors(decoder: Decoder, dtype: str) -> dict[str, np.ndarray]:
    """Arrays by GGUF name, in the file's number format."""
    from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, get_tensor_name_map
    from gguf.quants import QuantError, quantize

    if dtype not in FILE_TYPES:
        raise BadGguf(f"number format {dtype!r} is not known.\nChoose {', '.join(FILE_TYPES)}.")
    arch, arrays = decoder.arch, {}
    kinds = {name: kind for kind, name in MODEL_ARCH_NAMES.items()}
    known = get_tensor_name_map(kinds[_name(arch)], arch.num_layers)
    for name, tensor in to_hf(arch, dict(decoder.named_parameters())).items():
        array = _laid_out(arch, name, tensor.detach().float().numpy())
        if dtype == "F16" and array.ndim > 1:
            with np.errstate(over="ignore"):
                array = array.astype(np.float16)
            if not np.isfinite(array).all():
                raise BadGguf(f"{name} is too large for F16.\nExport it as F32.")
        if dtype == "Q4_0" and array.ndim > 1:
            try:
                array = quantize(array, GGMLQuantizationType.Q4_0)
            except QuantError as error:
                raise BadGguf(f"{name} has no Q4_0 form: {error}.\nExport it as F16.") from None
        arrays[known.get_name(name, (".weight", ".bias"))] = array
    if arch.model_type == "gpt_neox" and arch.tie_embeddings:  # llama.cpp does not tie these
        arrays["output.weight"] = arrays["token_embd.weight"]
    if arch.model_type == "llama" and arch.rope_scaling is not None:
        unscaled = rotary_frequencies(replace(arch, rope_scaling=None), torch.device("cpu"))
        factors = unscaled / rotary_frequencies(arch, torch.device("cpu"))
        arrays["rope_freqs.weight"] = factors.numpy()
    return arrays


def _laid_out(arch: Architecture, name: str, array: np.ndarray) -> np.ndarray:
    """A checkpoint's tensor with its elements as llama.cpp wants them."""
    stem = name.rpartition(".")[0]
    if arch.norm == "rms_offset" and stem.endswith("norm"):
        return array + np.float32(1)  # its norms multiply by the weight alone
    if arch.model_type == "llama" and stem.endswith((".q_proj", ".k_proj")):
        # There dimension 2 i of a head pairs with 2 i + 1, here i with i + D/2.
        parts = array.reshape(-1, 2, arch.head_dim // 2, array.shape[1]).swapaxes(1, 2)
    elif stem.endswith(".query_key_value"):  # there all queries, then all keys, then all values
        parts = array.reshape(arch.num_heads, 3, -1).swapaxes(0, 1)
    else:
        return array
    return np.ascontiguousarray(parts).reshape(array.shape)


def _read_tokenizer(folder: Path, vocab_size: int) -> dict:
    """Tokens, their types, merges and the split's name, from tokenizer.json."""
    from gguf import TokenType

    path = folder / "tokenizer.json"
    content = read_object(path, BadGguf, "Give the model's tokenizer directory.", 256 << 20)
    model = content.get("model", dict)
    if (kind := model.get("type", str)) != "BPE":
        raise BadGguf(f"{path} is a {kind} tokenizer.\nOnly byte-level BPE is known.")
    tokens = [f"[PAD{index}]" for index in range(vocab_size)]  # rows without a token
    types = [int(TokenType.UNUSED)] * vocab_size
    known = model.get("vocab", dict).values_of(int, low=0)
    added = {}
    for token in content.items_of("added_tokens", dict) or ():
        text = token.get("content", str)
        known[text], added[text] = token.get("id", int, low=0), token.get("special", bool, False)
    for text, index in known.items():
        if index >= vocab_size:
            raise BadGguf(
                f"{path} has token {index}, but the model has {vocab_size}.\n"
                "Give the tokenizer that the model was trained with."
            )
        tokens[index] = text
        usual = TokenType.USER_DEFINED if text in added else TokenType.NORMAL
        types[index] = int(TokenType.CONTROL if added.get(text) else usual)
    merges = model.get("merges", list)
    try:
        pairs = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    except TypeError:
        raise model.bad("has merges that are not pairs of texts") from None
    return {"tokens": tokens, "types": types, "merges": pairs, "split": _split(content, path)}


def _split(content: Fields, path: Path) -> str:
    """llama.cpp's name of how the tokenizer splits text."""
    splitter = content.object("pre_tokenizer")
    parts = splitter.items_of("pretokenizers", dict) or [splitter]
    kinds = [part.get("type", str, None) for part in parts]
    if kinds == ["ByteLevel"] and parts[0].get("use_regex", bool, True):
        return "gpt-2"
    if kinds == ["Split", "ByteLevel"] and QWEN_SPLIT in str(parts[0].content.get("pattern")):
        return "qwen2"
    raise BadGguf(
        f"{path} splits text in a way that has no known name in GGUF ({shown(kinds)}).\n"
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
