"""Attention kernels against the decoder's own, in float32, under Triton's interpreter."""

import pytest
import torch

from ember.backends.cuda import attention as module
from ember.backends.cuda.attention import Attention, Sharing
from ember.model.architecture import Architecture
from ember.model.decoder import attend, rotary_tables, rotate

S, W, D, EPS = 256, 128, 32, 1e-6


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


# Prompts of the arena as (start, length), and each row's prompt and tokens of its own.
CASES = [
    ([(0, 1)], [(0, 0)]),  # the first token
    ([(64, 130)], [(0, 7)]),
    ([(0, 64), (100, 3)], [(0, 70), (1, 2)]),
    ([(0, 100), (110, 1)], [(1, 0), (0, 5), (1, 66), (0, 0)]),  # in no order
    ([(3, 65)], [(0, row) for row in range(34)]),  # more than one program takes
    ([], [(None, 0), (None, 100)]),  # everything in the rows' own memory
    ([], [(None, 100)]),
]


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize(("prompts", "rows"), CASES)
def test_attention(prompts, rows, normed):
    check(prompts, rows, normed, per=16)


@pytest.mark.parametrize(
    ("programs", "per"),
    [(1, 16), (10**6, 16), (10**6, 4)],  # a program has a whole group; two rows; half of a row
)
@pytest.mark.parametrize(("prompts", "rows"), [case for case in CASES if case[0]])
def test_attention_in_groups(prompts, rows, programs, per, monkeypatch):
    monkeypatch.setattr(module, "FEW_ROWS", 0)
    monkeypatch.setattr(module, "SHARED_PARTS", 8)
    monkeypatch.setattr(module, "PROGRAMS", programs)
    check(prompts, rows, normed=True, per=per)


def check(prompts, rows, normed, per):
    """Rows of a batch against the decoder's attention; memory that is nobody's stays untouched."""
    heads, kv_heads, batch = 8, 2, len(rows)
    shape = arch(heads, kv_heads)
    generator = torch.Generator().manual_seed(batch)
    draw = lambda *size: torch.randn(size, generator=generator)  # noqa: E731
    arena = torch.full((1, 2, kv_heads, S, D), torch.nan)
    for start, length in prompts:
        arena[0, :, :, start : start + length] = draw(2, kv_heads, length, D)
    kv = torch.full((1, 2, batch + 1, kv_heads, W, D), torch.nan)  # a row that nobody uses
    own = [tokens for _, tokens in rows]
    shared = [0 if prompt is None else prompts[prompt][1] for prompt, _ in rows]
    memory = []
    for row, (prompt, tokens) in enumerate(rows):
        kv[0, :, row, :, :tokens] = draw(2, kv_heads, tokens, D)
        start = 0 if prompt is None else prompts[prompt][0]
        read = arena[0, :, :, start : start + shared[row]]
        memory.append(torch.cat([read, kv[0, :, row, :, :tokens]], 2))
    lengths = [mine.shape[2] for mine in memory]
    qkv = draw(batch, (heads + 2 * kv_heads) * D)
    norms = 1 + 0.3 * draw(2, D)

    cos, sin = (t[0, :, 0] for t in rotary_tables(shape, torch.arange(S), torch.float32))
    attention = Attention(kv, heads, cos, sin, arena if prompts else None)
    members = [[row for row, (prompt, _) in enumerate(rows) if prompt == p] for p in range(9)]
    groups = [
        (*prompts[p], members[p][first : first + per])
        for p in range(len(prompts))
        for first in range(0, len(members[p]), per)
    ]
    groups += [(0, 0, [])] * bool(groups)  # a table may be larger than what is in it
    attention.tables.fill(groups, per)
    position = torch.tensor(lengths, dtype=torch.int32)
    out = torch.full((batch, heads * D), torch.nan)
    attention(
        *(0, qkv, norms if normed else None, position, torch.tensor(shared, dtype=torch.int32)),
        *(out, Sharing(len(groups), per)),
        eps=EPS,
    )

    q, k, v = qkv.view(batch, 1, -1, D).split([heads, kv_heads, kv_heads], 2)
    if normed:
        q = torch.nn.functional.rms_norm(q, (D,), norms[0], EPS)
        k = torch.nn.functional.rms_norm(k, (D,), norms[1], EPS)
    table = rotary_tables(shape, position[:, None], torch.float32)
    q, k = rotate(q, *table).transpose(1, 2), rotate(k, *table).transpose(1, 2)
    for row in range(batch):
        keys = torch.cat([memory[row][0], k[row]], 1)[None]
        values = torch.cat([memory[row][1], v[row].transpose(0, 1)], 1)[None]
        expected = attend(q[row : row + 1], keys, values).flatten()
        torch.testing.assert_close(out[row], expected, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(kv[0, 0, row, :, own[row]], k[row, :, 0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(kv[0, 1, row, :, own[row]], v[row, 0], atol=0, rtol=0)
        assert kv[0, :, row, :, own[row] + 1 :].isnan().all()
    assert kv[0, :, batch].isnan().all()


def test_a_row_is_the_same_in_any_batch():
    heads, kv_heads = 4, 2
    generator = torch.Generator().manual_seed(0)
    arena = torch.randn(1, 2, kv_heads, S, D, generator=generator)
    kv = torch.randn(1, 2, 3, kv_heads, W, D, generator=generator)
    qkv = torch.randn(3, (heads + 2 * kv_heads) * D, generator=generator)
    cos, sin = (
        t[0, :, 0] for t in rotary_tables(arch(heads, kv_heads), torch.arange(S), torch.float32)
    )
    shared = torch.full((3,), 70, dtype=torch.int32)
    position = torch.tensor([70, 90, 81], dtype=torch.int32)

    def attend_rows(rows: list[int], groups) -> torch.Tensor:
        out = torch.empty(len(rows), heads * D)
        attention = Attention(kv[:, :, rows].clone(), heads, cos, sin, arena)
        attention.tables.fill(groups, 16)
        sharing = Sharing(len(groups), 16)
        attention(0, qkv[rows], None, position[rows], shared, out, sharing, eps=EPS)
        return out

    together = attend_rows([0, 1, 2], [(5, 70, [0, 1, 2])])
    for row in range(3):
        assert torch.equal(attend_rows([row], [(5, 70, [0])])[0], together[row])
