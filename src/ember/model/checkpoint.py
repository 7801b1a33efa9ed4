"""Weights in and out: Hugging Face model directories, and directories that only declare weights.

Contract. A model directory holds `config.json` and either safetensors (one file, or shards with an
index) or an `ember.json` that says `{"weights": "random", "seed": …}`: such weights are drawn on
load. `ember.json` also says where weights came from; without it they are `pretrained`. What
`save_decoder` writes, Transformers loads with equal logits.
"""

import json
import logging
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ember.measure.memory import require
from ember.measure.overhead import part
from ember.model import names
from ember.model.architecture import Architecture
from ember.model.decoder import Decoder
from ember.model.folder import (
    CONFIG,
    INDEX,
    KIND,
    KINDS,
    WEIGHTS,
    BadCheckpoint,
    Contents,
    check_unchanged,
    eos_token_ids,
    open_weights,
    read_contents,
)
from ember.records.atomic import atomic_dir

log = logging.getLogger(__name__)

INITIAL_STD = 0.02


@part("model_load")
def load_decoder(
    folder: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    check_finite: bool = False,
) -> Decoder:
    """The decoder of a model directory, in eval mode.

    Every tensor must be there, have the architecture's shape, and be known. With `check_finite`
    NaN and infinity are refused too. Raises `BadCheckpoint`, `UnsupportedModel` or
    `NotEnoughMemory` before anything large is allocated where that is possible.
    """
    folder = Path(folder)
    if (folder / "packed.safetensors").exists():
        from ember.model.packed_folder import load_packed  # which imports this module

        return load_packed(folder, device, dtype)
    contents = read_contents(folder)
    arch = contents.arch
    if not contents.tensors:
        if contents.kind.get("weights", str) == "random":
            seed = contents.kind.get("seed", int, 0, low=0)
            decoder = random_decoder(arch, seed, device, dtype)
            decoder.eos_token_ids = eos_token_ids(folder)
            return decoder
        raise BadCheckpoint(
            f"{folder} holds no {WEIGHTS} and no {INDEX}.\n"
            "Give a complete model directory in safetensors format, or make it again."
        )
    check_unchanged(folder)
    decoder = empty_decoder(arch, device, dtype)
    decoder.eos_token_ids = eos_token_ids(folder)
    wanted = dict(decoder.named_parameters())
    with torch.no_grad():
        for name, file, tensor in _tensors(contents):
            if check_finite and not torch.isfinite(tensor).all():
                raise BadCheckpoint(
                    f"{name!r} in {file} holds NaN or infinity.\nTrain or download the model again."
                )
            for ours, piece in names.from_hf(arch, name, tensor).items():
                parameter = wanted.pop(ours, None)
                if parameter is None:
                    raise BadCheckpoint(
                        f"{file} holds an unexpected tensor {name!r}: it repeats one, or "
                        f"{folder / CONFIG} describes another model.\nGive matching files."
                    )
                if piece.shape != parameter.shape:
                    raise BadCheckpoint(
                        f"{name!r} in {file} has shape {tuple(piece.shape)}, but {folder / CONFIG} "
                        f"asks for {tuple(parameter.shape)}.\nGive matching files."
                    )
                parameter.copy_(piece)
    if wanted:
        raise BadCheckpoint(
            f"{folder} lacks {len(wanted)} tensors, among them {min(wanted)!r}.\n"
            "Give a complete model directory, or make it again."
        )
    log.info("loaded %s: %d parameters, %s on %s", folder, arch.parameter_count(), dtype, device)
    return decoder.eval()


def save_decoder(
    decoder: Decoder,
    folder: str | Path,
    *,
    weights: str = "trained",
    extra_files: Iterable[str | Path] = (),
    about: dict | None = None,
) -> Path:
    """Writes a model directory that `load_decoder` and Transformers load, whole or not at all.

    `weights` (trained, random or pretrained) and `about` go into `ember.json`; `extra_files` (a
    tokenizer's, say) are copied in under their names.
    """
    # Clones, because a packed decoder's parameters share memory, which the format refuses.
    parameters = {name: p.detach().cpu().clone() for name, p in decoder.named_parameters()}
    state = names.to_hf(decoder.arch, parameters)
    dtype = str(next(decoder.parameters()).dtype).removeprefix("torch.")
    config = decoder.arch.to_hf() | {"dtype": dtype, "torch_dtype": dtype}
    kind = {"weights": weights} | (about or {})
    return write_folder(folder, config, kind, state, extra_files)


def write_folder(
    folder: str | Path,
    config: Mapping,
    kind: Mapping,
    state: Mapping[str, Tensor],
    extra_files: Iterable[str | Path] = (),
    file: str = WEIGHTS,
) -> Path:
    """Writes a model directory whole or not at all: config.json, ember.json, tensors in `file`."""
    from safetensors.torch import save_file

    if kind["weights"] not in KINDS:
        raise ValueError(f"weights must be one of {KINDS}, got {kind['weights']!r}")
    with atomic_dir(folder) as part:
        for name, content in ((CONFIG, config), (KIND, kind)):
            (part / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
        save_file(state, part / file, metadata={"format": "pt"})
        for extra in map(Path, extra_files):
            shutil.copyfile(extra, part / extra.name)
    return Path(folder)


def random_decoder(
    arch: Architecture,
    seed: int = 0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Decoder:
    """A decoder with seeded random weights, drawn on the device; training starts from these.

    Matrices are normal with std 0.02, those that write to the residual stream smaller by
    sqrt(2 · layers) (GPT-2), norms multiply by 1, biases are 0. CPU and CUDA draw
    different numbers.
    """
    decoder = empty_decoder(arch, device, dtype)
    generator = torch.Generator(device=device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if parameter.ndim == 1:
                none = name.endswith("bias") or arch.norm == "rms_offset"
                parameter.fill_(0.0 if none else 1.0)
                continue
            writes_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            shrink = math.sqrt(2 * arch.num_layers) if writes_residual else 1.0
            parameter.normal_(0.0, INITIAL_STD / shrink, generator=generator)
    return decoder.eval()


class _Unfilled(TorchFunctionMode):
    """Modules made inside keep their parameters as allocated: they are filled from elsewhere.

    Not made on the meta device: for that torch imports its compiler, seconds of every process that
    loads a model.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def empty_decoder(arch: Architecture, device, dtype: torch.dtype) -> Decoder:
    """A decoder whose parameters are allocated but not filled."""
    needed = arch.parameter_count() * dtype.itemsize
    require(needed, str(device), f"a {arch.model_type} of {arch.parameter_count():,} parameters")
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device), _Unfilled():
            return Decoder(arch)
    finally:
        torch.set_default_dtype(usual)


def _tensors(contents: Contents) -> Iterator[tuple[str, Path, Tensor]]:
    """Every tensor with its name and file, one at a time, on the CPU."""
    by_file = groupby(contents.tensors.items(), key=lambda item: item[1].file)
    for file, found in by_file:
        with open_weights(file, "pt") as stream:
            for name, stored in found:
                yield name, file, stream.get_tensor(stored.name)
