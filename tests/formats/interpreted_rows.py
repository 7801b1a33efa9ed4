"""Run by test_rows_kernel.py in a process of its own, under Triton's interpreter."""

import sys

import torch

from ember.formats.base import FormatError
from ember.formats.registry import FORMATS
from ember.formats.rows_kernel import quantise_rows


def main() -> int:
    generator = torch.Generator().manual_seed(0)
    for bits in (4, 8):
        format = FORMATS[f"int{bits}"]
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            for rows, size, group in ((5, 64, None), (3, 96, 24), (70, 32, 16), (1, 6, 2), (0, 8, 4)):
                spread = 10 ** (4 * torch.rand(rows, 1, generator=generator) - 2)
                x = (torch.randn(rows, size, generator=generator) * spread).to(dtype)
                if rows > 1:
                    x[1] = 0
                ours = quantise_rows(x, bits, group)
                theirs = format.pack(format.quantise(x, group=group))
                assert ours.shape == theirs.shape
                assert torch.equal(ours.data, theirs.data), (bits, dtype, rows, size, group)
                assert torch.equal(ours.parts["scales"], theirs.parts["scales"])
        # Ties, and scales that float16 bounds at both ends.
        x = torch.tensor([[3.5, -2.5, 1.5, 7.0], [1e9, -1e9, 3e5, 0.0], [1e-9, -1e-8, 0.0, 0.0]])
        ours, theirs = quantise_rows(x, bits), format.pack(format.quantise(x))
        assert torch.equal(ours.data, theirs.data)
        assert torch.equal(ours.parts["scales"], theirs.parts["scales"])
        for bad in (float("nan"), float("inf")):
            x = torch.zeros(4, 8)
            x[2, 3] = bad
            try:
                quantise_rows(x, bits)
            except FormatError as error:
                assert "1 of 32 values are NaN or infinite" in str(error)
            else:
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
