"""Rooflines come from bytes, operations and measured times."""

import pytest

from ember.measure import roofline
from ember.measure.memory import NotEnoughMemory
from ember.measure.roofline import (
    copy_bandwidth_gb_s,
    last_cache_bytes,
    matmul_tflops,
    matvec_bandwidth_gb_s,
    read_bandwidth_gb_s,
)


@pytest.fixture
def two_ms(monkeypatch):
    """Every call takes 2 ms, by decree; it is still made."""

    def repeat(call, *, warmup, repeats, device):
        call()
        return [2.0] * repeats

    monkeypatch.setattr(roofline, "repeat", repeat)


def test_the_arithmetic(two_ms):
    assert copy_bandwidth_gb_s("cpu", buffer_bytes=4_000_000) == pytest.approx(4.0)
    assert read_bandwidth_gb_s("cpu", buffer_bytes=4_000_000) == pytest.approx(2.0)
    assert matvec_bandwidth_gb_s("cpu", buffer_bytes=4_096_000) == pytest.approx(2.048)
    assert matmul_tflops("cpu", side=100) == pytest.approx(0.001)


def test_this_machine():
    assert 0.01 < copy_bandwidth_gb_s("cpu", buffer_bytes=2**22, repeats=3) < 10_000
    assert 0.01 < read_bandwidth_gb_s("cpu", buffer_bytes=2**22, repeats=3) < 10_000
    for dtype in ("float32", "bfloat16"):
        assert 1e-5 < matmul_tflops("cpu", dtype, side=64, repeats=3) < 1000


def test_buffers_that_do_not_fit_are_refused():
    with pytest.raises(NotEnoughMemory, match="copy bandwidth"):
        copy_bandwidth_gb_s("cpu", buffer_bytes=10**17)


def test_the_last_cache_is_smaller_than_what_bandwidths_are_measured_with():
    size = last_cache_bytes("cpu")
    assert size is None or 2**15 <= size < 2**33
