"""Every kernel against plain PyTorch, on the CPU."""

import pytest


@pytest.mark.parametrize(
    "interpreted",
    [
        f"interpreted_{part}.py"
        for part in (
            "products",
            "packed",
            "packed_step",
            "attention",
            "causal",
            "correction",
            "plans",
            "sampling",
            "step",
        )
    ],
    indirect=True,
)
def test_kernels_equal_plain_operators(interpreted):
    assert interpreted.returncode == 0, interpreted.stdout
