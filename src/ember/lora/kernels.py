"""One pass over many matrices: W = base + s·B·A, or W += s2·B2·A2 - s1·B1·A1, in one launch.

Contract. Sums are in float32 and rounded to nearest once. A table of pointers names the matrices,
so that all of a model's are one launch; each program takes one tile of one of them. Ranks up to
SUMMED are summed by the arithmetic units, which needs no other layout of the tile; greater ones are
products of tiles (for 16-bit weights as three TF32 products, which keeps float32's accuracy).

What a tile costs beside reading and writing it is hidden behind the memory: the device's limit is
bytes read and written at its copy bandwidth.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

SUMMED = 16  # ranks up to which a sum beats a product of tiles (H200)
FIELDS = tl.constexpr(9)  # of a table entry


@dataclass(frozen=True)
class Tile:
    """What a program takes: `steps` times so many rows, and its warps."""

    rows: int
    cols: int
    warps: int
    steps: int = 1


TILE = Tile(16, 256, 2, 8)  # the fastest of those tried at rank 8 on an H200

_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def _product(
    a_ptr, b_ptr, row, col, rows, cols, RANK: tl.constexpr, DOT: tl.constexpr, EVEN: tl.constexpr
):
    """b·a of a tile (rows, cols); a (RANK, cols) and b (RANK, rows) are float32."""
    in_rows, in_cols = row < rows, col < cols
    if DOT != "":
        k = tl.arange(0, RANK)
        a_places = a_ptr + k[:, None] * cols + col[None, :]
        b_places = b_ptr + k[None, :] * rows + row[:, None]
        if EVEN:
            a, b = tl.load(a_places), tl.load(b_places)
        else:
            a = tl.load(a_places, mask=in_cols[None, :], other=0.0)
            b = tl.load(b_places, mask=in_rows[:, None], other=0.0)
        acc = tl.dot(b, a, input_precision=DOT)
    else:
        acc = tl.zeros((row.shape[0], col.shape[0]), dtype=tl.float32)
        for k in tl.static_range(RANK):
            if EVEN:
                a, b = tl.load(a_ptr + k * cols + col), tl.load(b_ptr + k * rows + row)
            else:
                a = tl.load(a_ptr + k * cols + col, mask=in_cols, other=0.0)
                b = tl.load(b_ptr + k * rows + row, mask=in_rows, other=0.0)
            acc += b[:, None] * a[None, :]
    return acc


@triton.jit
def _merge(
    table_ptr,  # (matrices, FIELDS) int64
    owner_ptr,  # (tiles,) int32: the matrix of each tile
    TYPE: tl.constexpr,
    RANK: tl.constexpr,
    OLD_RANK: tl.constexpr,  # 0: nothing is taken away
    DOT: tl.constexpr,  # "": sum; else the precision of a product
    OLD_DOT: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    STEPS: tl.constexpr,
    EVEN: tl.constexpr,  # tiles divide all matrices, which are aligned: no masks, wide loads
):
    program = tl.program_id(0)
    entry = table_ptr + tl.load(owner_ptr + program).to(tl.int64) * FIELDS
    target_ptr = tl.load(entry).to(tl.pointer_type(TYPE))
    source_ptr = tl.load(entry + 1).to(tl.pointer_type(TYPE))
    rows, cols = tl.load(entry + 2).to(tl.int32), tl.load(entry + 3).to(tl.int32)
    a_ptr = tl.load(entry + 5).to(tl.pointer_type(tl.float32))
    b_ptr = tl.load(entry + 6).to(tl.pointer_type(tl.float32))
    old_a_ptr = tl.load(entry + 7).to(tl.pointer_type(tl.float32))
    old_b_ptr = tl.load(entry + 8).to(tl.pointer_type(tl.float32))
    if EVEN:  # what pointers from a table do not tell the compiler
        target_ptr, source_ptr = tl.multiple_of(target_ptr, 16), tl.multiple_of(source_ptr, 16)
        a_ptr, old_a_ptr = tl.multiple_of(a_ptr, 16), tl.multiple_of(old_a_ptr, 16)
        b_ptr, old_b_ptr = tl.multiple_of(b_ptr, 16), tl.multiple_of(old_b_ptr, 16)
        rows, cols = tl.multiple_of(rows, 16), tl.multiple_of(cols, 16)
    tile = program - tl.load(entry + 4).to(tl.int32)
    across = tl.cdiv(cols, COLS)
    first = (tile // across) * (ROWS * STEPS)
    col = (tile % across) * COLS + tl.arange(0, COLS)
    inside = tl.arange(0, ROWS)[:, None] * cols + col[None, :]
    for step in range(STEPS):
        begin = first + step * ROWS
        row = begin + tl.arange(0, ROWS)
        there = (row < rows)[:, None] & (col < cols)[None, :]
        if EVEN:
            value = tl.load(source_ptr + begin * cols + inside, eviction_policy="evict_first")
        else:
            value = tl.load(source_ptr + begin * cols + inside, mask=there, other=0.0)
        acc = value.to(tl.float32)
        if RANK > 0:
            acc += _product(a_ptr, b_ptr, row, col, rows, cols, RANK, DOT, EVEN)
        if OLD_RANK > 0:
            acc -= _product(old_a_ptr, old_b_ptr, row, col, rows, cols, OLD_RANK, OLD_DOT, EVEN)
        if EVEN:
            tl.store(target_ptr + begin * cols + inside, acc.to(TYPE))
        else:
            tl.store(target_ptr + begin * cols + inside, acc.to(TYPE), mask=there)


@dataclass(frozen=True)
class Matrix:
    """One matrix of a launch; `source` is what the change is added to, often `target` itself.

    `new` and `old` are factors (a (rank, in), b (rank, out)) in float32, b with its scale in it and
    transposed; all matrices of a launch have them padded to the same rank.
    """

    target: Tensor  # (out, in)
    source: Tensor  # (out, in)
    new: tuple[Tensor, Tensor] | None
    old: tuple[Tensor, Tensor] | None


class Launch:
    """A prepared pass over matrices, to be run any number of times.

    It keeps pointers: whoever prepares it keeps the tensors, and prepares anew when they move.
    """

    def __init__(self, matrices: Sequence[Matrix], tile: Tile = TILE, dot: str | None = None):
        self.tile = tile
        first = matrices[0]
        self._type = _TYPES[first.target.dtype]
        self._rank = max((0 if m.new is None else len(m.new[0])) for m in matrices)
        self._old_rank = max((0 if m.old is None else len(m.old[0])) for m in matrices)
        ranks = self._rank, self._old_rank
        self._dots = _precisions(first.target.dtype, ranks) if dot is None else (dot, dot)
        table, counts, begin = [], [], 0
        for m in matrices:
            _check(m, first.target, self._rank, self._old_rank)
            rows, cols = m.target.shape
            factors = [*(m.new or (None, None)), *(m.old or (None, None))]
            pointers = [0 if f is None else f.data_ptr() for f in factors]
            table.append([m.target.data_ptr(), m.source.data_ptr(), rows, cols, begin, *pointers])
            counts.append(triton.cdiv(rows, tile.rows * tile.steps) * triton.cdiv(cols, tile.cols))
            begin += counts[-1]
        self._even = all(_is_even(m, tile) for m in matrices)
        device = first.target.device
        self._table = torch.tensor(table, dtype=torch.int64).to(device)
        owner = torch.repeat_interleave(
            torch.arange(len(matrices), dtype=torch.int32), torch.tensor(counts)
        )
        self._owner = owner.to(device)

    def run(self) -> None:
        """Enqueues the pass; one launch."""
        _merge[(len(self._owner),)](
            self._table,
            self._owner,
            TYPE=self._type,
            EVEN=self._even,
            **_options(self.tile, (self._rank, self._old_rank), self._dots),
        )


def begin_compiling(weights: Sequence[Tensor], rank: int) -> threading.Thread:
    """Compiles in the background, without a word to the device, the pass that adds factors of a
    rank to such weights. A process's first kernel takes Triton half a second more, in which it
    hashes its own library and leaves the interpreter to others."""
    call = {"TYPE": _TYPES[weights[0].dtype], "EVEN": _all_even(weights, TILE)}
    call |= _options(TILE, (rank, 0), _precisions(weights[0].dtype, (rank, 0)))
    thread = threading.Thread(
        target=_merge.warmup, args=(torch.int64, torch.int32), kwargs=call | {"grid": (1,)}
    )
    thread.start()
    return thread


def make_ready(weights: Sequence[Tensor], ranks: Sequence[tuple[int, int]]) -> None:
    """Compiles and loads passes over such weights for ranks (new, old), 0 for none: each runs over
    one tile of scratch."""
    first, tile = weights[0], TILE
    even = _all_even(weights, tile)
    shape = (max(16, tile.rows * tile.steps), max(16, tile.cols)) if even else (1, 1)
    scratch = torch.zeros(shape, dtype=first.dtype, device=first.device)
    for pair in ranks:
        new, old = (
            tuple(torch.zeros(rank, n, device=first.device) for n in reversed(shape))
            if rank
            else None
            for rank in pair
        )
        Launch([Matrix(scratch, scratch, new, old)]).run()


def padded_rank(rank: int) -> int:
    """The rank that factors are padded to: as it is for sums, a tile's side for products."""
    return rank if rank <= SUMMED else max(16, triton.next_power_of_2(rank))


def _precisions(dtype: torch.dtype, ranks: tuple[int, int]) -> tuple[str, ...]:
    """Of the products with new and old factors; "": they are summed."""
    precise = "ieee" if dtype == torch.float32 else "tf32x3"
    return tuple(precise if rank > SUMMED else "" for rank in ranks)


def _options(tile: Tile, ranks: tuple[int, int], dots: tuple[str, ...]) -> dict:
    return {
        "RANK": ranks[0],
        "OLD_RANK": ranks[1],
        "DOT": dots[0],
        "OLD_DOT": dots[1],
        "ROWS": tile.rows,
        "COLS": tile.cols,
        "STEPS": tile.steps,
        "num_warps": tile.warps,
    }


def _all_even(weights: Sequence[Tensor], tile: Tile) -> bool:
    """Whether tiles divide all of them; factors and copies are aligned as a rule."""
    return all(_is_even(Matrix(weight, weight, None, None), tile) for weight in weights)


def _is_even(m: Matrix, tile: Tile) -> bool:
    """Whether tiles divide the matrix and all of it is aligned to 16 bytes."""
    (rows, cols), factors = m.target.shape, [*(m.new or ()), *(m.old or ())]
    return (
        rows % max(16, tile.rows * tile.steps) == 0
        and cols % max(16, tile.cols) == 0
        and all(x.data_ptr() % 16 == 0 for x in (m.target, m.source, *factors))
    )


def _check(m: Matrix, like: Tensor, rank: int, old_rank: int) -> None:
    for tensor in (m.target, m.source):
        assert tensor.shape == m.target.shape, "source and target have one shape"
        assert tensor.is_contiguous(), "matrices must be contiguous"
        assert tensor.dtype == like.dtype, "a launch has one number format"
        assert tensor.numel() < 2**31, "places within a matrix are 32-bit numbers"
        assert tensor.device == like.device, "a launch is of one device"
    out, width = m.target.shape
    for factors, wanted in ((m.new, rank), (m.old, old_rank)):
        if factors is None:
            assert wanted == 0, "either all matrices have these factors or none"
            continue
        for factor, size in zip(factors, (width, out), strict=True):
            assert factor.shape == (wanted, size), (factor.shape, wanted, size)
            assert factor.dtype == torch.float32, "factors are float32"
            assert factor.is_contiguous(), "factors must be contiguous"
            assert factor.device == like.device, "factors lie where the matrices are"
