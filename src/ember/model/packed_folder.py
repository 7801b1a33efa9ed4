"""Model directories of packed weights, and what else brings them: `.dat`, compressed-tensors (L-3).

Contract. Beside `config.json` and `ember.json` there is one `packed.safetensors` with the decoder's
own names: `<layer>.weight.qdata`, `.scale` (float8_e4m3fn where they are E4M3) and `.tensor_scale`
of packed layers, `<name>` of the rest. `import_state` also takes checkpoints' names and the layout
of compressed-tensors (`weight_packed`, `weight_scale`, `weight_global_scale`, the reciprocal of
ours). A layer takes the form that it has in the file.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ember.formats.base import FormatError
from ember.model import names
from ember.model.checkpoint import empty_decoder, write_folder
from ember.model.dat import read_dat
from ember.model.decoder import Decoder
from ember.model.families import family_of
from ember.model.folder import (
    REMEDY,
    BadCheckpoint,
    eos_token_ids,
    open_weights,
    read_architecture,
)
from ember.model.packed import PACKED, PackedLinear

FILE = "packed.safetensors"
PARTS = ("qdata", "scale", "tensor_scale")
COMPRESSED = {
    "weight_packed": "qdata",
    "weight_scale": "scale",
    "weight_global_scale": "tensor_scale",
}

NVFP4_A16 = {  # what compressed-tensors calls such weights
    "quant_method": "compressed-tensors",
    "format": "nvfp4-pack-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "input_activations": None,
            "weights": {
                "num_bits": 4,
                "type": "float",
                "strategy": "tensor_group",
                "group_size": 16,
                "symmetric": True,
                "dynamic": False,
            },
        }
    },
}


def packed_state(decoder: Decoder) -> dict[str, Tensor]:
    """A decoder's tensors by name, on the CPU; packed layers as codes and scales."""
    packed = {name: m for name, m in decoder.named_modules() if isinstance(m, PackedLinear)}
    state = {}
    for name, tensor in decoder.state_dict().items():
        layer, _, part = name.rpartition(".")
        if layer in packed and part in PARTS:
            if part == "scale" and tensor.dtype == torch.uint8:
                tensor = tensor.view(torch.float8_e4m3fn)
            name = f"{layer}.weight.{part}"
        state[name] = tensor.detach().cpu().contiguous().clone()
    return state


def save_packed(
    decoder: Decoder,
    folder: str | Path,
    *,
    weights: str,
    extra_files: Iterable[str | Path] = (),
    about: Mapping | None = None,
) -> Path:
    """Writes a directory of packed weights, whole or not at all; `load_decoder` loads it."""
    kind = {"weights": weights} | dict(about or {})
    state = packed_state(decoder)
    return write_folder(folder, decoder.arch.to_hf(), kind, state, extra_files, FILE)


def save_compressed(decoder: Decoder, folder: str | Path, *, weights: str) -> Path:
    """Writes a directory of NVFP4 weights in the layout of compressed-tensors, which vLLM runs.

    The head is dense. Raises BadCheckpoint for other formats, and for a family whose checkpoints
    keep queries, keys and values in one matrix: it has no such layers.
    """
    layers = {name: m for name, m in decoder.named_modules() if isinstance(m, PackedLinear)}
    formats = {layer.format for layer in layers.values()}
    if formats != {"nvfp4"} or "lm_head" in layers or family_of(decoder.arch.model_type).packed_qkv:
        raise BadCheckpoint(
            f"compressed-tensors' NVFP4 layout does not take weights in {sorted(formats)} of this "
            f"{decoder.arch.model_type}.\nQuantise a Qwen or a Llama to nvfp4, with a dense head."
        )
    theirs, state = {ours: name for name, ours in COMPRESSED.items()}, {}
    for name, tensor in packed_state(decoder).items():
        layer, _, part = name.rpartition(".")
        if part not in PARTS:
            state |= names.to_hf(decoder.arch, {name: tensor})
            continue
        [full] = names.to_hf(decoder.arch, {layer: tensor})
        tensor = 1 / tensor if part == "tensor_scale" else tensor
        state[f"{full.removesuffix('weight')}{theirs[part]}"] = tensor
    config = decoder.arch.to_hf() | {"quantization_config": NVFP4_A16}
    return write_folder(folder, config, {"weights": weights}, state)


def load_packed(
    folder: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    state: Mapping[str, Tensor] | None = None,
) -> Decoder:
    """The decoder of a directory of packed weights, or of `state` in its architecture.

    Raises BadCheckpoint and FormatError for tensors that are missing, left over or of other shapes.
    """
    folder = Path(folder)
    if state is None:
        with open_weights(folder / FILE, "pt") as stream:
            state = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    arch = read_architecture(folder)
    if arch.tie_embeddings and any(key.startswith("lm_head.weight") for key in state):
        arch = replace(arch, tie_embeddings=False)
    decoder = empty_decoder(arch, "cpu", dtype)
    decoder.eos_token_ids = eos_token_ids(folder)
    import_state(decoder, state, str(folder))
    return decoder.to(device).eval()


def load_dat(
    path: str | Path,
    folder: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Decoder:
    """The decoder of a `.dat` file, in the architecture of a model directory."""
    return load_packed(folder, device, dtype, state=read_dat(path))


@torch.no_grad()
def import_state(decoder: Decoder, state: Mapping[str, Tensor], where: str) -> None:
    """Fills a decoder; its linear layers become packed where the tensors are. See the module."""
    ours, dense = _by_layer(decoder, state)
    for name, parts in ours.items():
        parent, _, child = name.rpartition(".")
        try:
            linear = decoder.get_submodule(name)
        except AttributeError:
            linear = None
        if not isinstance(linear, nn.Linear):
            raise BadCheckpoint(f"{where} has packed weights of {name}, no such layer.\n{REMEDY}")
        setattr(decoder.get_submodule(parent), child, _layer(f"{where}: {name}", linear, parts))
    wanted = dict(decoder.named_parameters())
    for name, tensor in dense.items():
        parameter = wanted.pop(name, None)
        if parameter is None or parameter.shape != tensor.shape:
            raise BadCheckpoint(
                f"{where}: {name!r} of shape {tuple(tensor.shape)} is not this model's.\n"
                "Give matching files."
            )
        parameter.copy_(tensor)
    if wanted:
        raise BadCheckpoint(f"{where} lacks {len(wanted)} tensors, {min(wanted)!r}.\n{REMEDY}")


def _by_layer(
    decoder: Decoder, state: Mapping[str, Tensor]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Packed parts by layer and part, and dense parameters by the decoder's names."""
    own, packed, dense = dict(decoder.named_parameters()), {}, {}
    for key, tensor in state.items():
        name = key if key in own else names.renamed(decoder.arch, key)
        layer, _, part = name.rpartition(".")
        part = COMPRESSED.get(part, part)
        if part in PARTS:
            if name.endswith("weight_global_scale"):
                tensor = 1.0 / tensor.float()
            packed.setdefault(layer.removesuffix(".weight"), {})[part] = tensor
        elif name in own:
            dense[name] = tensor
        else:
            dense |= names.from_hf(decoder.arch, key, tensor)
    return packed, dense


def _layer(name: str, linear: nn.Linear, parts: Mapping[str, Tensor]) -> PackedLinear:
    """The packed layer of a file's parts; which format is told by the scales."""
    scale, codes = parts.get("scale"), parts.get("qdata")
    rows, columns = linear.out_features, linear.in_features
    if scale is None or codes is None or tuple(codes.shape) != (rows, columns // 2):
        raise FormatError(f"{name}: codes or scales are missing or not ({rows}, {columns // 2})")
    stored = torch.uint8 if scale.dtype == torch.float8_e4m3fn else scale.dtype
    for cls in PACKED.values():
        if (stored, tuple(scale.shape)) == (cls.scale_dtype, (rows, columns // cls.block)):
            made = cls(columns, rows, linear.bias)
            own = {
                key: tensor.reshape(1).float() if key == "tensor_scale" else tensor
                for key, tensor in parts.items()
            }
            own |= {} if linear.bias is None else {"bias": linear.bias}
            made.load_state_dict(own)
            return made
    raise FormatError(
        f"{name}: scales {tuple(scale.shape)} of {scale.dtype} belong to no packed format "
        f"({', '.join(PACKED)})"
    )
