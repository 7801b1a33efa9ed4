"""The ways to multiply by a weight, and why one is not there.

Each is made of copies of a weight and gives a call: x (M, K) times each of them in turn, of which
the last one's result (M, N) is returned.
"""

import importlib.util
from collections.abc import Callable, Sequence

Path = Callable[[Sequence], Callable]


def paths_of(format: str, device: str) -> dict[str, Path | str]:
    """By name the paths of a format on a device, or why there is none."""
    import torch.nn.functional as F

    if device == "cpu":
        from ember.backends.compiled.native_step import Products

        own, dense = Products, lambda weight, dtype: weight.dense(dtype)
    else:
        from ember.backends.cuda.packed import dense, product

        own = _each(product)
    if format == "dense":
        return {"torch": _each(F.linear)} | ({"kernels": own} if device == "cpu" else {})
    dequantise = _each(lambda x, weight: F.linear(x, dense(weight, x.dtype)))
    found: dict[str, Path | str] = {"kernels": own, "dequantise": dequantise}
    if device == "cuda":
        found["fp8"] = _fp8() if format == "nvfp4" else "NVFP4 alone is converted to FP8"
    if format == "nvfp4":
        found["scaled_mm"] = _scaled_mm(device)
    if format == "nf4":
        found["bitsandbytes"] = _bitsandbytes()
    return found


def _each(multiply: Callable) -> Path:
    """A path that takes one copy after another."""

    def made(copies: Sequence) -> Callable:
        def call(x):
            for weight in copies:
                out = multiply(x, weight)
            return out

        return call

    return made


def _fp8() -> Path | str:
    import torch

    if torch.cuda.get_device_capability() < (8, 9):
        return "the device has no FP8 matrix units (compute capability 8.9 and later)"
    from ember.backends.cuda.packed_prefill import by_fp8

    return _each(by_fp8)


def _scaled_mm(device: str) -> Path | str:
    if device != "cuda":
        return "FP4 matrix units are a GPU's (compute capability 10.0 and later)"
    import torch

    if torch.cuda.get_device_capability() < (10, 0):
        return "the device has no FP4 matrix units (compute capability 10.0 and later)"
    from ember.backends.cuda.packed_prefill import by_fp4

    return _each(by_fp4)


def _bitsandbytes() -> Path | str:
    if importlib.util.find_spec("bitsandbytes") is None:
        return "bitsandbytes is not installed (the extra `peers`)"

    def made(copies: Sequence) -> Callable:
        from bitsandbytes import matmul_4bit
        from bitsandbytes.functional import QuantState, quantize_4bit

        states = []
        for weight in copies:
            _, like = quantize_4bit(weight.dense(), blocksize=weight.block, quant_type="nf4")
            state = QuantState(
                absmax=weight.scales.reshape(-1),
                shape=like.shape,
                code=like.code,
                blocksize=weight.block,
                quant_type="nf4",
                dtype=like.dtype,
            )
            states.append((weight.codes.reshape(-1, 1), state))

        def call(x):
            for codes, state in states:
                state.dtype = x.dtype
                out = matmul_4bit(x, codes.t(), quant_state=state)
            return out

        return call

    return made
