"""Which weights a decoder has: a hash of their content, found once and kept until they change.

Contract. `version` is the same for the same architecture and weights (names, formats and bits) in
any process on the same kind of device, and another for others. It belongs into the key of whatever
was computed from weights and may be reused: KV above all. It costs one pass over the weights when
it is first asked for, and after each change.

Changes that torch counts (optimizers, `copy_`, `load_state_dict`) and parameters that were replaced
are noticed; who writes past that (`.data`, kernels) says so with `changed`. A module whose children
do not always take part (branches of which one is active) says in its attribute `version_note` what
does; their parameters are then left out.
"""

import hashlib
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ember.model.decoder import Decoder

DIGITS = 16  # of a version, enough to tell the weights of any programme apart
CHUNK = 1 << 24  # elements summed at a time on a device
THREADS = 4


@dataclass
class _Known:
    """Versions of a decoder's states for as long as its parameters are marked so."""

    marks: tuple = ()
    state: Hashable = None
    found: dict[Hashable, str] = field(default_factory=dict)


_known: WeakKeyDictionary[Decoder, _Known] = WeakKeyDictionary()


def version(decoder: Decoder) -> str:
    """The content of the decoder's architecture and weights, as 16 hexadecimal digits."""
    known = _known.setdefault(decoder, _Known())
    marks = _marks(decoder)
    if marks != known.marks:
        known.marks = marks
        known.found.clear()
    if known.state not in known.found:
        known.found[known.state] = _content(decoder)
    return known.found[known.state]


def changed(decoder: Decoder, state: Hashable = None) -> None:
    """Says that weights were changed where torch does not count it.

    `state` is a name of what they are now that always stands for the same bits, so that coming back
    to it costs nothing; None: there is no such name.
    """
    known = _known.setdefault(decoder, _Known())
    known.state = state
    if state is None:
        known.found.pop(None, None)


def _marks(decoder: Decoder) -> tuple:
    """Marks of all parameters. Not by `parameters()`, which takes twice as long, at each prompt."""
    found, modules = [], [decoder]
    while modules:
        module = modules.pop()
        found += [mark(p) for p in module._parameters.values() if p is not None]
        modules += [child for child in module._modules.values() if child is not None]
    return tuple(found)


def mark(parameter: Tensor) -> tuple[int, int | None]:
    """Where a parameter lies and how often torch saw it change."""
    return parameter.data_ptr(), None if parameter.is_inference() else parameter._version


@torch.no_grad()
def _content(decoder: Decoder) -> str:
    total = hashlib.sha256(f"{decoder.arch}\n".encode())
    spoken_for = set()
    for name, module in decoder.named_modules():
        if (note := getattr(module, "version_note", None)) is not None:
            total.update(f"{name} {note}\n".encode() if note else b"")
            spoken_for |= {id(p) for child in module.children() for p in child.parameters()}
    parameters = {name: p for name, p in decoder.named_parameters() if id(p) not in spoken_for}
    with ThreadPoolExecutor(THREADS) as pool:  # hashing leaves the interpreter to the others
        digests = list(pool.map(digest, parameters.values()))
    for (name, parameter), found in zip(parameters.items(), digests, strict=True):
        total.update(f"{name} {parameter.dtype} {tuple(parameter.shape)} ".encode() + found)
    return total.hexdigest()[:DIGITS]


def digest(parameter: Tensor) -> bytes:
    """A hash of one tensor's bits."""
    tensor = parameter.detach()
    if tensor.device.type != "cpu":
        tensor = weighted_sums(tensor).cpu()
    return hashlib.sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()).digest()


def weighted_sums(tensor: Tensor) -> Tensor:
    """Sums of each row's bits times odd random numbers, modulo 2^64, (rows,).

    One element that differs always shows, several but for a chance of about 2^-62; at the speed of
    the device's memory, where copying the weights to the host would take seconds.
    """
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize]
    rows = tensor.contiguous().view(whole)
    rows = rows.reshape(1, -1) if tensor.ndim < 2 else rows.flatten(0, -2)
    factors = _factors(rows.shape[1], rows.device)
    step = max(1, CHUNK // max(1, rows.shape[1]))
    return torch.cat([(part.long() * factors).sum(-1) for part in rows.split(step)])


@lru_cache(maxsize=64)
def _factors(count: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    drawn = torch.randint(-(2**62), 2**62, (count,), generator=generator)
    return (drawn | 1).to(device)
