"""Attention kernels against the decoder's own, in float32, under Triton's interpreter."""

import pytest
import torch

from ember.engine.kernels.attention import Attention
from ember.model.architecture import Architecture
from ember.model.decoder import RMSNorm, attend, rotary_tables, rotate

S, D, EPS = 256, 32, 1e-6


def arch(heads: int, kv_heads: int) -> Architecture:
    return Architecture.make(
        model_type="qwen3",
        hidden_size=32,
        intermediate_size=32,
        num_layers=1,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=D,
        vocab_size=8,
        max_positions=S,
    )


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize(
    ("batch", "prompts", "shared", "own"),
    [
        (1, 1, [0], 0),  # the first token
        (1, 1, [0], 150),
        (1, 1, [130], 7),
        (2, 2, [64, 3], 70),
        (6, 2, [100, 1], 0),
        (20, 1, [65], 3),  # more queries of a KV head than one program takes
    ],
)
def test_attention(batch, prompts, shared, own, normed):
    heads, kv_heads = 8, 2
    shape = arch(heads, kv_heads)
    generator = torch.Generator().manual_seed(batch)
    draw = lambda *size: torch.randn(size, generator=generator)  # noqa: E731
    kv = torch.full((1, 2, batch, kv_heads, S, D), torch.nan)
    lengths = [shared[row % prompts] + own for row in range(batch)]
    memory = draw(2, batch, kv_heads, S, D)
    for row, length in enumerate(lengths):
        prompt = row % prompts
        memory[:, row, :, : shared[prompt]] = memory[:, prompt, :, : shared[prompt]]
        # A candidate's own memory has what follows the prompt, and nothing else.
        first = 0 if row < prompts else shared[prompt]
        kv[0, :, row, :, first:length] = memory[:, row, :, first:length]
    qkv = draw(batch, (heads + 2 * kv_heads) * D)
    norms = 1 + 0.3 * draw(2, D)

    cos, sin = (t[0, :, 0] for t in rotary_tables(shape, torch.arange(S), torch.float32))
    attention = Attention(kv, heads, prompts, cos, sin)
    position = torch.tensor(lengths, dtype=torch.int32)
    out = torch.full((batch, heads * D), torch.nan)
    attention(
        0,
        qkv,
        norms if normed else None,
        position,
        torch.tensor(shared, dtype=torch.int32),
        out,
        eps=EPS,
    )

    q, k, v = qkv.view(batch, 1, -1, D).split([heads, kv_heads, kv_heads], 2)
    if normed:
        norm = RMSNorm(D, EPS)
        with torch.no_grad():
            q = torch.nn.functional.rms_norm(q, (D,), norms[0], norm.eps)
            k = torch.nn.functional.rms_norm(k, (D,), norms[1], norm.eps)
    table = rotary_tables(shape, position[:, None], torch.float32)
    q, k = rotate(q, *table).transpose(1, 2), rotate(k, *table).transpose(1, 2)
    for row, length in enumerate(lengths):
        keys = torch.cat([memory[0, row, :, :length], k[row]], 1)[None]
        values = torch.cat([memory[1, row, :, :length], v[row].transpose(0, 1)], 1)[None]
        expected = attend(q[row : row + 1], keys, values).flatten()
        torch.testing.assert_close(out[row], expected, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(kv[0, 0, row, :, length], k[row, :, 0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(kv[0, 1, row, :, length], v[row, 0], atol=0, rtol=0)
        assert kv[0, 0, row, :, length + 1 :].isnan().all()


def test_a_row_is_the_same_in_any_batch():
    heads, kv_heads, length = 4, 2, 90
    generator = torch.Generator().manual_seed(0)
    kv = torch.randn(1, 2, 3, kv_heads, S, D, generator=generator)
    qkv = torch.randn(3, (heads + 2 * kv_heads) * D, generator=generator)
    cos, sin = (
        t[0, :, 0] for t in rotary_tables(arch(heads, kv_heads), torch.arange(S), torch.float32)
    )
    shared = torch.tensor([70], dtype=torch.int32)
    position = torch.full((3,), length, dtype=torch.int32)
    together = torch.empty(3, heads * D)
    Attention(kv, heads, 1, cos, sin)(0, qkv, None, position, shared, together, eps=EPS)
    for row in range(3):
        own = kv[:, :, row : row + 1].clone()
        own[:, :, 0, :, :70] = kv[:, :, 0, :, :70]
        alone = torch.empty(1, heads * D)
        Attention(own, heads, 1, cos, sin)(
            0, qkv[row : row + 1], None, position[:1], shared, alone, eps=EPS
        )
        assert torch.equal(alone[0], together[row])
