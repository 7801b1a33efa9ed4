"""The merging kernel under Triton's interpreter, and where it serves."""

import pytest

from ember.lora.merge import Merger, kernels_serve
from tests.tiny import wild


@pytest.mark.parametrize("interpreted", ["interpreted_merge.py"], indirect=True)
def test_the_kernel_equals_plain_operators(interpreted):
    assert interpreted.returncode == 0, interpreted.stdout


def test_without_cuda_plain_operators_serve():
    decoder = wild()
    assert not kernels_serve(decoder)
    assert not Merger(decoder).uses_kernels
