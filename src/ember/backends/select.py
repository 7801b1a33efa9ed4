"""Which backend runs a decoder, and why not a faster one.

Contract. `kernels` are Triton's on CUDA, `compiled` is the CPU's compiled step, `eager` the decoder
itself, which runs everything. `unsupported_reason` is the one place that knows what each serves.
Asking imports no Triton, so that it is cheap.
"""

import importlib.util
import os
from dataclasses import dataclass

import torch

from ember.backends.base import Backend
from ember.backends.compiled.native_step import why_no_code
from ember.backends.forward import Forward
from ember.cache.slotted import SlottedCache
from ember.model.architecture import Architecture
from ember.model.decoder import Decoder
from ember.model.linear import is_linear, weight_format
from ember.model.packed import PACKED
from ember.records.errors import EmberError

FASTEST_FIRST = ("kernels", "compiled", "eager")
KERNEL_ROWS = 1024  # the most rows of a batch
KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


class Unsupported(EmberError):
    """A backend was asked for by name that does not serve the case."""


@dataclass(frozen=True)
class Case:
    """What is to run."""

    arch: Architecture
    device: torch.device
    dtype: torch.dtype
    rows: int = 1
    batch_invariant: bool = False
    formats: frozenset[str] = frozenset({"dense"})

    @classmethod
    def of(cls, decoder: Decoder, **fields) -> "Case":
        """Of a decoder's architecture and weights; `fields`: the others. Raises TypeError where a
        linear layer is more than its weight."""
        weight = decoder.embed_tokens.weight
        formats = frozenset(weight_format(m) for m in decoder.modules() if is_linear(m))
        return cls(decoder.arch, weight.device, weight.dtype, formats=formats, **fields)


@dataclass(frozen=True)
class Selection:
    """The backend that runs, and of each faster one why it does not. `dequantised`: formats of
    weights of which it makes dense ones before each product."""

    name: str
    reasons: dict[str, str]
    dequantised: tuple[str, ...] = ()


def select(case: Case, only: str | None = None, *, require_native: bool = False) -> Selection:
    """The fastest backend that serves the case; with `only` that one, or `Unsupported`.

    `require_native`: weights are multiplied as they are stored, or `Unsupported`; the eager backend
    makes dense ones of packed ones first.
    """
    if only is not None and only not in FASTEST_FIRST:
        raise Unsupported(f"there is no backend {only!r}.\nChoose from {', '.join(FASTEST_FIRST)}.")
    reasons = {}
    for name in FASTEST_FIRST:
        reason = unsupported_reason(name, case)
        if only == name and reason is not None:
            raise Unsupported(
                f"the backend {name} does not serve this: {reason}.\n"
                "Leave backend= out: the fastest that serves is taken."
            )
        if reason is None and only in (None, name):
            packed = tuple(sorted(case.formats - {"dense"})) if name == "eager" else ()
            if require_native and packed:
                said = "; ".join(f"{other}: {why}" for other, why in reasons.items())
                raise Unsupported(
                    f"no kernel reads {', '.join(packed)} weights here ({said}).\n"
                    "Leave require_native out to dequantise before each product, or use dense "
                    "weights."
                )
            return Selection(name, reasons, packed)
        reasons[name] = reason or f"the caller asked for {only}"
    raise AssertionError("the eager backend serves every case")


def unsupported_reason(backend: str, case: Case) -> str | None:
    """Why a backend does not serve a case; None if it does."""
    if backend == "eager":
        return None
    missing = sorted(case.formats - {"dense", *PACKED})
    if missing:
        return f"it has no form for {', '.join(missing)} weights"
    return _not_compiled(case) if backend == "compiled" else _not_kernels(case)


def _not_compiled(case: Case) -> str | None:
    if case.device.type != "cpu":
        return "the weights are not on the CPU"
    return why_no_code(case.dtype)


def _not_kernels(case: Case) -> str | None:
    arch, cuda = case.arch, case.device.type == "cuda"
    if not cuda and not interpreted():
        return "the weights are not on a CUDA device"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if cuda and torch.cuda.get_device_capability(case.device) < (8, 0):
        return "the device is older than compute capability 8.0"
    if (reason := _not_in_kernels(arch)) is not None:
        return reason
    if case.dtype not in KERNEL_DTYPES:
        return f"there are no kernels for {case.dtype}"
    if case.batch_invariant:
        return "how they cut products and attention depends on the batch, and so do the last bits"
    if case.rows > KERNEL_ROWS:
        return f"a batch of {case.rows} rows is above {KERNEL_ROWS}"
    return None


def _not_in_kernels(arch: Architecture) -> str | None:
    if arch.norm == "layer" and arch.qk_norm:
        return "its norms over heads are LayerNorms"
    if arch.head_dim % 2 or arch.head_dim > 256:
        return f"a head dimension of {arch.head_dim} is not an even number up to 256"
    if arch.groups > 16:
        return f"{arch.groups} query heads share a KV head, more than 16"
    return None


def interpreted() -> bool:
    """Whether Triton runs kernels on the CPU, as the tests ask it to."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@torch.inference_mode()
def make_backend(
    name: str,
    decoder: Decoder,
    cache: SlottedCache,
    *,
    capacity: int,
    forward: Forward,
    graphs: bool = True,
    batch_invariant: bool = False,
) -> Backend:
    """The backend over memory made for it. `capacity`: the most tokens of a sequence; `graphs`:
    record CUDA graphs where there is CUDA. The decoder's weights are packed in place."""
    if name == "kernels":
        from ember.backends.cuda.backend import KernelBackend  # imports Triton

        return KernelBackend(decoder, cache, forward, capacity, graphs=graphs)
    if name == "compiled":
        from ember.backends.compiled.backend import CompiledBackend

        return CompiledBackend(decoder, cache, forward, capacity)
    from ember.backends.eager import EagerBackend

    return EagerBackend(decoder, cache, forward, invariant=batch_invariant)
