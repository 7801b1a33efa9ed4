"""The decoding step on the CPU as one call of compiled code, in float32 or bfloat16.

Contract. Logits equal the eager decoder's (1e-4 in float32). `native_step.c` is compiled for this
machine's processor by the C compiler that is there (`CC`, or cc) when it is first needed, which
takes about two seconds, and kept in the user's cache. A row's result depends neither on
the batch nor on the number of threads, not by a bit. Where weights are bfloat16, arithmetic is
float32 all the same, which the decoder's is not.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ember.backends.compiled.packed import GROUP, Matrix
from ember.backends.packing import Norm, PackedDecoder, Weight
from ember.model.architecture import Architecture
from ember.model.decoder import embedding_scale, rotary_tables

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_suffix(".c")
PARTS = (SOURCE, SOURCE.with_name("packed.c"))  # that it is made of
FLAGS = (
    *("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp"),
    *("-shared", "-fPIC", "-std=gnu11"),
)
DTYPES = {torch.float32: (), torch.bfloat16: ("-DBFLOAT16",)}
NORM_KINDS = ("rms", "rms_offset", "layer")  # by their numbers in the code
ACTIVATIONS = ("silu", "gelu", "gelu_tanh")
POINTER = ctypes.c_void_p


class NativeStep:
    """A step over one packed decoder and rows' KV; `logits` (B, V), float32, is overwritten."""

    def __init__(
        self,
        arch: Architecture,
        weights: PackedDecoder,
        kv: Tensor,
        positions: int,
        prompts: Tensor | None = None,
    ):
        """`kv` (L, 2, B, Hkv, S, D) is what rows have of their own, `prompts` (L, 2, Hkv, T, D)
        what they may share; `positions`: the most tokens of a sequence."""
        batch, dim = kv.shape[2], arch.head_dim
        self._function = _library(kv.dtype)[0].ember_step
        self._threads = max(torch.get_num_threads(), os.cpu_count() or 1)
        scratch = batch * arch.hidden_size + arch.groups * (dim + positions)
        scratch = -(-scratch // 16) * 16
        tables = {local: _swapped_tables(arch, positions, local) for local in (False, True)}
        layers = (_Layer * arch.num_layers)(
            *(
                _layer(weights, i, kv, prompts, tables[arch.rope_is_local(i)], arch.window(i))
                for i in range(arch.num_layers)
            )
        )
        self.x = torch.empty(batch, arch.hidden_size)  # the residual stream after the layers
        buffers = [
            self.x,
            torch.empty(batch, arch.hidden_size),  # added
            torch.empty(batch, (arch.num_heads + 2 * arch.num_kv_heads) * dim),  # qkv
            torch.empty(batch, arch.num_heads * dim),  # attended
            torch.empty(batch, arch.intermediate_size),  # acted
        ]
        memory = torch.empty(self._threads, scratch)
        widest = max(arch.hidden_size, arch.num_heads * dim, arch.intermediate_size)
        planes = torch.empty(self._threads, batch * -(-widest // GROUP) * GROUP)
        self.logits = torch.empty(batch, len(weights.head))
        # Whatever the code reads or writes must live as long as the step.
        self._kept = [weights, kv, prompts, layers, buffers, memory, planes, tables]
        self._step = _Step(
            *(arch.num_layers, arch.hidden_size, arch.intermediate_size, len(weights.head)),
            *(arch.num_heads, arch.num_kv_heads, dim, arch.rotary_dim),
            *(NORM_KINDS.index(arch.norm), ACTIVATIONS.index(arch.activation)),
            *(arch.gated_mlp, arch.parallel_residual),
            *(*kv.stride()[2:4], 0 if prompts is None else prompts.stride(2)),
            *(arch.norm_eps, embedding_scale(arch, kv.dtype), arch.score_scale),
            _norm(weights.norm),
            *(_address(weights.embedding), Matrix.of(weights.head), ctypes.addressof(layers)),
            *(_address(x) for x in (*buffers, self.logits, memory)),
            *(scratch, _address(planes), planes.shape[1]),
        )
        self._dtype, self._vocabulary = kv.dtype, len(weights.embedding)
        self._none, self._own = torch.zeros(2, batch, dtype=torch.long)

    def __call__(self, tokens: Tensor, position: int) -> Tensor:
        """Runs tokens (B,) at a position of rows that share nothing; returns logits (B, V)."""
        self._own.fill_(position)
        return self.run(tokens, self._none, self._none, self._own).to(self._dtype)

    def run(
        self,
        tokens: Tensor,
        starts: Tensor,
        shared: Tensor,
        own: Tensor,
        offsets: Tensor | None = None,
    ) -> Tensor:
        """Runs one token of each of the first B rows; returns logits (B, V). All are int64 (B,).

        Row b reads `shared[b]` tokens of the prompts from `starts[b]` on, then `own[b]` of its own,
        after which the KV of the new one is stored. Its first token stands at `offsets[b]`, by
        default 0.
        """
        if not 0 <= int(tokens.min()) <= int(tokens.max()) < self._vocabulary:
            raise IndexError(f"a token is not in 0 … {self._vocabulary - 1}: {tokens.tolist()}")
        offsets = self._none[: len(tokens)] if offsets is None else offsets
        arrays = [x.contiguous() for x in (tokens, starts, shared, own, offsets)]
        rows, threads = len(tokens), min(torch.get_num_threads(), self._threads)
        step = ctypes.byref(self._step)
        self._function(step, *(x.data_ptr() for x in arrays), rows, threads)
        return self.logits[:rows]


class Products:
    """x · weightᵀ for weights of one shape, each in turn, by the code of the step."""

    def __init__(self, weights: Sequence[Weight], dtype: torch.dtype = torch.float32):
        """`dtype`: of dense weights."""
        self._function = _library(dtype)[0].ember_products
        self._weights, self._shape = weights, tuple(weights[0].shape)
        self._matrices = (Matrix * len(weights))(*map(Matrix.of, weights))

    def __call__(self, x: Tensor) -> Tensor:
        """The last one's product (B, N) with x (B, K), both float32."""
        (n, k), threads = self._shape, torch.get_num_threads()
        out, x = torch.empty(len(x), n), x.contiguous()
        planes = torch.empty(threads, len(x) * -(-k // GROUP) * GROUP)
        self._function(
            *(ctypes.addressof(self._matrices), len(self._matrices), x.data_ptr(), len(x), n, k),
            *(out.data_ptr(), planes.data_ptr(), planes.shape[1], threads),
        )
        return out


class _Norm(ctypes.Structure):
    _fields_ = (("weight", POINTER), ("bias", POINTER))


class _Layer(ctypes.Structure):
    NORMS = ("input_norm", "post_norm", "attn_out_norm", "mlp_out_norm")
    MATRICES = ("qkv", "o", "down", "gate_up")
    BIASES = ("qkv_bias", "o_bias", "gate_up_bias", "down_bias")
    OTHERS = ("cos", "sin", "keys", "values", "prompt_keys", "prompt_values")
    _fields_ = (
        *((name, _Norm) for name in (*NORMS, "q_norm", "k_norm")),
        *((name, Matrix) for name in MATRICES),
        *((name, POINTER) for name in (*BIASES, *OTHERS)),
        ("window", ctypes.c_int64),
    )


class _Step(ctypes.Structure):
    SIZES = ("layers", "hidden", "intermediate", "vocabulary", "heads", "kv_heads", "dim")
    SWITCHES = ("rotated", "norm_kind", "activation", "gated", "parallel")
    STRIDES = ("row_stride", "head_stride", "prompt_stride")
    FACTORS = ("eps", "embedding_scale", "score_scale")
    BUFFERS = ("x", "added", "qkv", "attended", "acted", "logits", "scratch")
    _fields_ = (
        *((name, ctypes.c_int64) for name in (*SIZES, *SWITCHES, *STRIDES)),
        *((name, ctypes.c_float) for name in FACTORS),
        ("norm", _Norm),
        ("embedding", POINTER),
        ("head", Matrix),
        *((name, POINTER) for name in ("layer", *BUFFERS)),
        ("scratch_floats", ctypes.c_int64),
        ("planes", POINTER),
        ("planes_floats", ctypes.c_int64),
    )


def _layer(
    weights: PackedDecoder,
    index: int,
    kv: Tensor,
    prompts: Tensor | None,
    tables: list[Tensor],
    window: int | None,
) -> _Layer:
    layer, none = weights.layers[index], (None, None)
    of_heads = (weights.qk_norms, weights.qk_norm_biases)  # weights and biases
    of_heads = (none if packed is None else packed[index] for packed in of_heads)
    norms = [getattr(layer, name) for name in _Layer.NORMS]
    norms += [Norm(*one) for one in zip(*of_heads, strict=True)]
    shared = none if prompts is None else prompts[index]
    return _Layer(
        *map(_norm, norms),
        *(Matrix.of(getattr(layer, name)) for name in _Layer.MATRICES),
        *(_address(getattr(layer, name)) for name in _Layer.BIASES),
        *(_address(x) for x in (*tables, *kv[index], *shared)),
        window or 0,
    )


def _norm(norm: Norm | None) -> _Norm:
    return _Norm() if norm is None else _Norm(*map(_address, norm))


def _swapped_tables(arch: Architecture, positions: int, local: bool) -> list[Tensor]:
    """cos and sin (positions, R) such that rotate(x) = cos · x + sin · (x with halves swapped)."""
    if local and arch.rope_local_theta is None:
        return []
    tables = rotary_tables(arch, torch.arange(positions), torch.float32, local=local)
    cos, sin = (x[0, :, 0] for x in tables)
    return [torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)]


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def why_no_code(dtype: torch.dtype) -> str | None:
    """Why there is no compiled code for a type of weights; None if there is."""
    if dtype not in DTYPES:
        return f"there is no compiled code for {dtype}"
    return _library(dtype)[1]


@cache
def _library(dtype: torch.dtype) -> tuple[ctypes.CDLL | None, str | None]:
    """The compiled code for a type of weights, or why there is none."""
    try:
        library = ctypes.CDLL(str(build(dtype)))
    except (OSError, subprocess.SubprocessError) as error:
        reason = f"no compiled code: {error}"
        log.info("decoding without compiled code (%s)", reason)
        return None, reason
    library.ember_step.argtypes = [POINTER] * 6 + [ctypes.c_int64, ctypes.c_int]
    library.ember_products.argtypes = [
        *(POINTER, ctypes.c_int64, POINTER, *[ctypes.c_int64] * 3, POINTER, POINTER),
        *(ctypes.c_int64, ctypes.c_int),
    ]
    library.ember_step.restype = library.ember_products.restype = None
    return library, None


def build(dtype: torch.dtype) -> Path:
    """Compiles the source for this machine, unless that is done, and returns the library's path.

    Raises OSError or subprocess.SubprocessError where no compiler is found or it fails.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        raise OSError("no C compiler (cc) is installed here")
    command = [*compiler.split(), *FLAGS, *DTYPES[dtype]]
    # The name says for what source, processor and compiler; a shared home may serve several.
    texts = [part.read_text() for part in PARTS]
    about = "\0".join([*texts, *command, _processor(), platform.machine()])
    name = f"native_step-{hashlib.sha256(about.encode()).hexdigest()[:16]}.so"
    target = cache_folder() / name
    if not target.is_file():
        log.info("compiling %s for this processor", SOURCE.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / name
            done = subprocess.run(
                [*command, str(SOURCE), "-o", str(made), "-lm"],
                capture_output=True,
                text=True,
                timeout=120,
            )
            if done.returncode:
                raise OSError(f"{command[0]} failed: {done.stderr.strip()[-500:]}")
            made.replace(target)  # two processes may compile at once: the last one wins
    return target


def cache_folder() -> Path:
    """$EMBER_CACHE, or ember/ in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("EMBER_CACHE") or f"{base}/ember").expanduser()


def _processor() -> str:
    """What -march=native looks at."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(
        dict.fromkeys(x for x in lines if x.startswith(("flags", "model name", "Features")))
    )
