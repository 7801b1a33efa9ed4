"""Fusers as their authors publish them (hub `nics-efc/C2C_Fuser`), read into `Fuser`.

A folder holds `projector_N.pt`, the state of one layer's projector each, and
`projector_config.json` that says which sharer layer it reads: {receiver: {sharer: {layer:
[[sharer layer, N]]}}}. The folder above has the training's `config.json`, with the token
alignment (C-M0). The .pt files are pickles of strangers: they are read with `weights_only=True`,
which takes nothing but tensors.

Their names, by branch (`key_`, `value_`), stand in `PARTS`. `gate_temperature` is where their
annealing of the gate ended, which inference does not use.
"""

import re
from pathlib import Path

import torch
from torch import Tensor

from ember.c2c.align import MODES
from ember.c2c.fuser import BadFuser, Fuser, FuserShape, check_fits, check_open
from ember.model.architecture import Architecture
from ember.records.foreign import cause_of, check_regular, read_object, shown

HUB_ID, FOLDER = "nics-efc/C2C_Fuser", "qwen3_0.6b+qwen2.5_0.5b_Fuser/final"
LAYOUT, TRAINING = "projector_config.json", "config.json"
REMEDY = f"Give a complete folder of {HUB_ID}, such as {FOLDER}."
PARTS = {  # of a branch: ours and theirs
    "enter": "in",
    "shared": "mlp1.blocks.0",
    "project": "proj_mlp2.blocks.0",
    "project_out": "proj_out",
    "weigh": "scalar_mlp2.blocks.0",
    "weigh_out": "scalar_head",
    "gate": "gate_logit",
}
INNER = {"up": "w1", "down": "w2"}  # of a block
UNUSED = {"gate_temperature"}


def published_name(ours: str) -> str:
    """What they call a parameter of a `LayerFuser`, such as `key.shared.up.weight`."""
    branch, part, *rest = ours.split(".")
    return ".".join([f"{branch}_{PARTS[part]}", *(INNER.get(piece, piece) for piece in rest)])


def fetch_published(source: str, folder: str = FOLDER, revision: str | None = None) -> Path:
    """The folder of a published fuser: `source` is a local path, or a hub id whose `folder` is
    downloaded. Raises `BadFuser`."""
    if (path := Path(source).expanduser()).is_dir():
        return path if (path / LAYOUT).exists() else path / folder
    from huggingface_hub import snapshot_download

    above = folder.rpartition("/")[0]
    patterns = [f"{folder}/*", f"{above}/{TRAINING}" if above else TRAINING]
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=patterns)) / folder
    except Exception as error:
        raise BadFuser(
            f"the fuser {source} cannot be had from the hub: {type(error).__name__}: "
            f"{cause_of(error)}.\nFill the hub cache where there is a network, or give the path of "
            "a local copy."
        ) from None


def read_published(folder: str | Path, sharer: Architecture, receiver: Architecture) -> Fuser:
    """The fuser of a folder, in eval mode and in its own number format.

    Every tensor must be known and have its shape, every layer its file. Raises `BadFuser`, for an
    unknown layout with what was found.
    """
    folder = Path(folder)
    files = _files(folder)
    chosen = _layers(folder, len(files))  # (sharer's layer, file) of each receiver layer
    states = [_read(files[number]) for _, number in chosen]
    shape = _shape(folder, states[0], sharer, receiver)
    sources = [source for source, _ in chosen]
    check_fits(str(folder), shape, sources, sharer, receiver)
    with torch.device("meta"):
        fuser = Fuser(shape, sources, rotated=True, noise="gumbel")
    for layer, (_, number), state in zip(fuser, chosen, states, strict=True):
        _fill(layer, files[number], state)
    check_open(str(folder), fuser)
    return fuser.eval()


def published_alignment(folder: str | Path) -> str:
    """The token alignment that a published fuser was trained with; off where nothing is said."""
    config = Path(folder).parent / TRAINING
    if not config.exists():
        return "off"
    model = read_object(config, BadFuser, REMEDY).object("model")
    if not model.get("is_do_alignment", bool, False):
        return "off"
    return model.get("alignment_strategy", str, "first", choices=MODES[1:])


def _files(folder: Path) -> dict[int, Path]:
    if not folder.is_dir():
        raise BadFuser(f"there is no folder {folder}.\n{REMEDY}")
    files = {
        int(found[1]): path
        for path in folder.iterdir()
        if (found := re.fullmatch(r"projector_([0-9]{1,4})\.pt", path.name))
    }
    if sorted(files) != list(range(len(files))) or not files:
        there = sorted(path.name for path in folder.iterdir())
        raise BadFuser(
            f"{folder} does not hold projector_0.pt and those that follow. It holds: "
            f"{', '.join(map(ascii, there[:40])) or 'nothing'}.\n{REMEDY}"
        )
    return files


def _layers(folder: Path, count: int) -> list[tuple[int, int]]:
    """The sharer's layer and the file of each of the receiver's layers."""
    found = read_object(folder / LAYOUT, BadFuser, REMEDY)
    for _ in ("receiver", "sharer"):
        if len(found) != 1:
            raise BadFuser(
                f"{found.where} is not of one receiver and one sharer: it has {shown([*found])}.\n"
                f"{REMEDY}"
            )
        found = found.object(next(iter(found)))
    layers = []
    for layer in range(len(found)):
        pairs = found.get(str(layer), list)
        one = pairs[0] if len(pairs) == 1 else None
        if not (
            isinstance(one, list)
            and len(one) == 2
            and all(type(number) is int for number in one)
            and 0 <= one[1] < count
        ):
            raise BadFuser(
                f"{found.where} has {shown(pairs)} for layer {layer}, which is not one sharer's "
                f"layer and one of {count} files.\n{REMEDY}"
            )
        layers.append((one[0], one[1]))
    if len({number for _, number in layers}) != count:
        raise BadFuser(f"{found.where} does not use each of {count} files once.\n{REMEDY}")
    return layers


def _read(path: Path) -> dict[str, Tensor]:
    check_regular(path, BadFuser, REMEDY)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # its reader of pickles raises whatever a bad one leads it to
        raise BadFuser(f"{path} cannot be read: {cause_of(error)}.\n{REMEDY}") from None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(x, Tensor) for name, x in state.items()
    ):
        raise BadFuser(f"{path} is not a dictionary of tensors.\n{REMEDY}")
    return state


def _shape(
    folder: Path, state: dict[str, Tensor], sharer: Architecture, receiver: Architecture
) -> FuserShape:
    if (enter := state.get(published_name("key.enter.weight"))) is None or enter.ndim != 2:
        raise BadFuser(
            f"the layout of {folder} is unknown: a file has {', '.join(sorted(state)[:40])}.\n"
            f"{REMEDY}"
        )
    return FuserShape.of(sharer, receiver, len(enter))


def _fill(layer: torch.nn.Module, path: Path, state: dict[str, Tensor]) -> None:
    names = {published_name(ours): ours for ours, _ in layer.named_parameters()}
    if differ := (names.keys() ^ state.keys()) - UNUSED:
        said = {True: "lacks", False: "has the unknown"}
        faults = [f"{said[name in names]} {shown(name)}" for name in sorted(differ)]
        raise BadFuser(
            f"{path} {', '.join(faults[:8])}. It holds: {', '.join(sorted(state)[:40])}.\n{REMEDY}"
        )
    wanted = dict(layer.named_parameters())
    for theirs, ours in names.items():
        tensor = state[theirs]
        if tensor.shape != wanted[ours].shape or not tensor.is_floating_point():
            raise BadFuser(
                f"{path}: {theirs} is {tensor.dtype} of {tuple(tensor.shape)}, and this pair needs "
                f"{tuple(wanted[ours].shape)}.\nGive the fuser of this pair."
            )
        if not tensor.isfinite().all():
            raise BadFuser(f"{path}: {theirs} holds NaN or infinity.\n{REMEDY}")
    layer.load_state_dict({ours: state[theirs] for theirs, ours in names.items()}, assign=True)
