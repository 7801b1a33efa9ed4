import pytest
import torch

from ember.cache.copying import copy_kv


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("dim", "start"),
    [(32, 3), (8, 1), (6, 2), (5, 0)],  # the last two are no whole units
)
def test_copies_between_strides_change_no_bit(dim, start, dtype):
    source = torch.randn(2, 3, 7, dim).to(dtype)
    source[0, 0, 0, 0] = torch.nan
    target = torch.zeros(2, 2, 3, 20, dim, dtype=dtype)
    part = target[..., start : start + 7, :]
    assert copy_kv(part, source) is part
    for row in range(2):  # broadcast
        found = target[row, ..., start : start + 7, :].contiguous()
        assert torch.equal(found.view(torch.uint8), source.view(torch.uint8))
    assert not target[..., :start, :].any()
    assert not target[..., start + 7 :, :].any()
    back = copy_kv(torch.empty_like(source), part[1])
    assert torch.equal(back.view(torch.uint8), source.view(torch.uint8))


def test_other_formats_and_strides_are_copied_as_ever():
    source = torch.randn(4, 6, 8)
    assert torch.equal(copy_kv(torch.empty(4, 6, 8, dtype=torch.float64), source), source.double())
    turned = source.transpose(1, 2)
    assert torch.equal(copy_kv(torch.empty(4, 8, 6), turned), turned)
    shifted = torch.randn(4 * 6 * 8 + 1)[1:].view(4, 6, 8)  # begins inside of a unit
    assert torch.equal(copy_kv(torch.empty(4, 6, 8), shifted), shifted)
