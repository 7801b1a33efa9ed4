"""Attention of new tokens to a cache against the decoder's own, under Triton's interpreter."""

import pytest
import torch

from ember.backends.cuda.causal_attention import Tile, attend_causal
from ember.model.decoder import attend

TILE = Tile(32, 16, 2, 4)  # queries, keys, stages, warps
SHAPES = [  # B, Hq, Hkv, D, T, S
    (1, 4, 2, 32, 2, 0),  # less than a tile
    (1, 4, 1, 32, 64, 64),  # whole tiles
    (1, 4, 1, 32, 37, 70),  # a prefix and a suffix that are none
    (2, 2, 2, 64, 64, 31),
    (2, 6, 2, 32, 33, 1),
    (1, 7, 1, 128, 16, 15),  # a group that is no power of 2
    (1, 2, 1, 256, 17, 33),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("batch", "heads", "kv_heads", "dim", "tokens", "past"), SHAPES)
def test_causal_attention(batch, heads, kv_heads, dim, tokens, past, dtype):
    generator = torch.Generator().manual_seed(tokens + past)
    keys = past + tokens
    kv = torch.full((2, batch + 1, kv_heads, keys + 9, dim), torch.nan)  # nobody reads the rest
    kv[:, 1:, :, :keys] = torch.randn(2, batch, kv_heads, keys, dim, generator=generator)
    q = torch.randn(batch, tokens, heads, dim, generator=generator).to(dtype)
    k, v = kv.to(dtype)[:, 1:, :, :keys].unbind()
    expected = attend(q.float().transpose(1, 2), k.float(), v.float()).transpose(1, 2)
    found = attend_causal(q, k, v, tile=TILE)
    assert found.shape == q.shape
    tolerance = 2e-5 if dtype == torch.float32 else 2e-3
    torch.testing.assert_close(found.float(), expected, atol=tolerance, rtol=1e-4)


def test_a_row_is_the_same_in_any_batch():
    q = torch.randn(3, 20, 4, 32)
    k, v = torch.randn(2, 3, 2, 45, 32)
    together = attend_causal(q, k, v, tile=TILE)
    for row in range(3):
        alone = attend_causal(*(x[row : row + 1] for x in (q, k, v)), tile=TILE)
        assert torch.equal(alone[0], together[row])


def test_memory_that_is_no_block_is_refused():
    q, kv = torch.randn(2, 4, 2, 32), torch.randn(2, 2, 1, 8, 32)
    with pytest.raises(ValueError, match="contiguous"):
        attend_causal(q.transpose(0, 1), *kv)
    with pytest.raises(ValueError, match="follow one another"):
        attend_causal(q, *torch.randn(2, 4, 1, 8, 32)[:, ::2])
