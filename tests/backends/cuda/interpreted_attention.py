"""Attention kernels against the decoder's own, in float32, under Triton's interpreter."""

import pytest
import torch

from ember.backends.cuda import attention as module
from ember.backends.cuda.attention import Attention, Sharing
from ember.model.architecture import Architecture
from ember.model.decoder import attend, attend_near, rotary_tables, rotate

S, W, D, EPS = 256, 128, 32, 1e-6
HEADS = [  # of other sizes, partly rotated, and of layers that slide
    {"head_dim": 8},
    {"head_dim": 80, "rope_fraction": 0.25},
    {"head_dim": 64, "rope_fraction": 0.25},
    {"head_dim": 40, "rope_fraction": 0.75},  # more than a half
    {"head_dim": 24, "norm": "rms_offset", "query_scalar": 5.0},
    {"sliding_layers": (0,), "sliding_window": 50, "rope_local_theta": 100.0},
    {"sliding_layers": (0,), "sliding_window": 3, "head_dim": 20},
]


def arch(heads: int, kv_heads: int, **fields) -> Architecture:
    sizes = {
        "model_type": "qwen3",
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_layers": 1,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": D,
        "vocab_size": 8,
        "max_positions": S,
    }
    return Architecture.make(**sizes | fields)


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


SINGLE = [  # no prompt is shared
    ([], [(None, 0)]),
    ([], [(None, 100)]),
    ([], [(None, 0), (None, 100), (None, 3)]),
    ([(0, 1)], [(0, 0)]),
    ([(64, 130)], [(0, 7)]),
    ([(0, 100), (110, 1), (3, 65)], [(1, 0), (0, 66), (2, 5)]),
]


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize(("prompts", "rows"), CASES)
def test_attention(prompts, rows, normed):
    check(prompts, rows, normed, per=16)


@pytest.mark.parametrize("fields", HEADS, ids=str)
@pytest.mark.parametrize(("prompts", "rows"), CASES[2:4] + CASES[5:6])
def test_attention_of_other_heads(prompts, rows, fields):
    check(prompts, rows, True, per=16, **fields)


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("fields", [{}, *HEADS], ids=str)
@pytest.mark.parametrize(("prompts", "rows"), SINGLE)
def test_attention_of_single_queries(prompts, rows, fields, normed, monkeypatch):
    monkeypatch.setattr(module, "SINGLE_PROGRAMS", 12)  # parts of one row, none of three
    check(prompts, rows, normed, per=1, heads=2, **fields)


@pytest.mark.parametrize("fields", HEADS, ids=str)
def test_the_parts_of_one_row_run_at_once(fields, monkeypatch):
    monkeypatch.setattr(module, "FEW_PROGRAMS", 16)
    monkeypatch.setattr(module, "FEW_BLOCK", W)  # a row's own memory is one block
    found, parts = [], Attention.parts
    monkeypatch.setattr(Attention, "parts", lambda *args: found.append(parts(*args)) or found[-1])
    check(*CASES[1], normed=True, per=1, **fields)
    assert found == [(3, 1)]  # of two groups and two heads each


@pytest.mark.parametrize("programs", [1, 10**6])
@pytest.mark.parametrize("fields", HEADS, ids=str)
def test_attention_of_other_heads_in_groups(fields, programs, monkeypatch):
    monkeypatch.setattr(module, "FEW_ROWS", 0)
    monkeypatch.setattr(module, "SHARED_PARTS", 8)
    monkeypatch.setattr(module, "PROGRAMS", programs)
    check(*CASES[3], normed=True, per=2, **fields)


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


def check(prompts, rows, normed, per, heads=8, **fields):
    """Rows of a batch against the decoder's attention; memory that is nobody's stays untouched."""
    kv_heads, batch = 2, len(rows)
    shape = arch(heads, kv_heads, **fields)
    dim, window = shape.head_dim, shape.window(0)
    generator = torch.Generator().manual_seed(batch)
    draw = lambda *size: torch.randn(size, generator=generator)  # noqa: E731
    arena = torch.full((1, 2, kv_heads, S, dim), torch.nan)
    for start, length in prompts:
        arena[0, :, :, start : start + length] = draw(2, kv_heads, length, dim)
    kv = torch.full((1, 2, batch + 1, kv_heads, W, dim), torch.nan)  # a row that nobody uses
    own = [tokens for _, tokens in rows]
    shared = [0 if prompt is None else prompts[prompt][1] for prompt, _ in rows]
    memory = []
    for row, (prompt, tokens) in enumerate(rows):
        kv[0, :, row, :, :tokens] = draw(2, kv_heads, tokens, dim)
        start = 0 if prompt is None else prompts[prompt][0]
        read = arena[0, :, :, start : start + shared[row]]
        memory.append(torch.cat([read, kv[0, :, row, :, :tokens]], 2))
    lengths = [mine.shape[2] for mine in memory]
    qkv = draw(batch, (heads + 2 * kv_heads) * dim)
    norms = 1 + 0.3 * draw(2, dim)

    attention = Attention(shape, kv, S, arena if prompts else None)
    members = [[row for row, (prompt, _) in enumerate(rows) if prompt == p] for p in range(9)]
    groups = [
        (*prompts[p], members[p][first : first + per])
        for p in range(len(prompts))
        for first in range(0, len(members[p]), per)
    ]
    groups += [(0, 0, [])] * bool(groups)  # a table may be larger than what is in it
    attention.tables.fill(lengths, shared, groups, per)
    position = torch.tensor(lengths)
    out = torch.full((batch, heads * dim), torch.nan)
    buffers = attention._buffers  # what lies in the memory of empty parts counts for nothing
    attention._buffers = lambda *of: [tensor.fill_(torch.nan) for tensor in buffers(*of)]
    attention(
        *(0, qkv, norms if normed else None, out, Sharing(len(groups), per)),
        eps=EPS,
    )

    q, k, v = qkv.view(batch, 1, -1, dim).split([heads, kv_heads, kv_heads], 2)
    if normed:
        weights = norms + (shape.norm == "rms_offset")
        q = torch.nn.functional.rms_norm(q, (dim,), weights[0], EPS)
        k = torch.nn.functional.rms_norm(k, (dim,), weights[1], EPS)
    local = shape.rope_is_local(0)
    table = rotary_tables(shape, position[:, None], torch.float32, local=local)
    q, k = rotate(q, *table).transpose(1, 2), rotate(k, *table).transpose(1, 2)
    for row in range(batch):
        keys = torch.cat([memory[row][0], k[row]], 1)[None]
        values = torch.cat([memory[row][1], v[row].transpose(0, 1)], 1)[None]
        mine = q[row : row + 1] * shape.score_scale * dim**0.5
        if window is None:
            expected = attend(mine, keys, values).flatten()
        else:
            expected = attend_near(mine, keys, values, window).flatten()
        torch.testing.assert_close(out[row], expected, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(kv[0, 0, row, :, own[row]], k[row, :, 0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(kv[0, 1, row, :, own[row]], v[row, 0], atol=0, rtol=0)
        assert kv[0, :, row, :, own[row] + 1 :].isnan().all()
    assert kv[0, :, batch].isnan().all()


def test_only_a_few_rows_let_others_start_late():
    memory = torch.zeros(1, 2, 9, 2, W, D)
    attention = Attention(arch(8, 2), memory, S, torch.zeros(1, 2, 2, S, D))
    qkv = torch.zeros(9, 12 * D)
    with pytest.raises(ValueError, match="up to 8 rows"):
        attention(0, qkv, None, qkv[:, : 8 * D], Sharing(1, 9), eps=EPS, late=True)


def test_a_row_is_the_same_in_any_batch():
    heads, kv_heads = 4, 2
    generator = torch.Generator().manual_seed(0)
    arena = torch.randn(1, 2, kv_heads, S, D, generator=generator)
    kv = torch.randn(1, 2, 3, kv_heads, W, D, generator=generator)
    qkv = torch.randn(3, (heads + 2 * kv_heads) * D, generator=generator)
    position = [70, 90, 81]

    def attend_rows(rows: list[int], groups) -> torch.Tensor:
        out = torch.empty(len(rows), heads * D)
        attention = Attention(arch(heads, kv_heads), kv[:, :, rows].clone(), S, arena)
        attention.tables.fill([position[row] for row in rows], [70] * len(rows), groups, 16)
        sharing = Sharing(len(groups), 16)
        attention(0, qkv[rows], None, out, sharing, eps=EPS)
        return out

    together = attend_rows([0, 1, 2], [(5, 70, [0, 1, 2])])
    for row in range(3):
        assert torch.equal(attend_rows([row], [(5, 70, [0])])[0], together[row])
