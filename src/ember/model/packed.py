"""Linear layers of 4-bit weights: codes and scales instead of a matrix, weight-only.

Contract. `qdata` (N, K / 2) holds the codes of two neighbours of K in a byte, `scale`
(N, K / block) what each block of K shares, exactly as `ember.formats` made them. Here they are
dequantised and multiplied by torch's operators, on any device; that is what kernels are compared
with. Kernels read the same bytes through `PackedMatrix`.

CUDA's kernels want the 32 bits of eight E2M1 codes in another order (`lay`), in which a shift and a
mask make bfloat16 of two codes, and what they read at once together. `PackedLinear.lay` puts a
layer's codes in an order of `ORDERS`, in place; whoever asks the layer for its codes, weights or
state gets them as files have them.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ember.formats import e2m1, nf4, nvfp4
from ember.formats.base import FormatError, Packed, Quantised, finite, format_named
from ember.formats.registry import FORMATS
from ember.records.errors import nearest

PIECE = 2**20  # weights that are dense at once in a product on a CPU
AT_ONCE = 2**22  # weights: quantising takes some ten times their bytes
ORDERS = ("file", "words", "tiles")
"""How codes lie: as files have them; with each word's bits as CUDA's kernels want them; and besides
with what they read at once together: tiles of so many rows and words (`TILE`)."""
TILE = (8, 16)


@dataclass(frozen=True)
class PackedMatrix:
    """A weight (N, K) as kernels read it, of one layer or of some whose rows are stacked."""

    format: str
    codes: Tensor  # (N, K / 2) uint8
    scales: Tensor  # (N, K / block): uint8, the bits of E4M3, or float32
    overall: Tensor | None  # (parts,) float32, what all of a part's scales are multiplied by
    ends: tuple[int, ...]  # the row at which each part ends
    order: str = "file"  # of `ORDERS`

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)"""
        return self.codes.shape[0], 2 * self.codes.shape[1]

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def block(self) -> int:
        """Values that share a scale."""
        return self.shape[1] // self.scales.shape[1]

    @property
    def high_first(self) -> bool:
        """Whether the first of a byte's two weights is its high nibble."""
        return FORMATS[self.format].high_first

    @property
    def nbytes(self) -> int:
        """Of codes and scales."""
        overall = 0 if self.overall is None else self.overall.nbytes
        return self.codes.nbytes + self.scales.nbytes + overall

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight (N, K); in float32 the bits that `ember.formats` gives."""
        scales = self.scales
        if scales.dtype == torch.uint8:
            scales = scales.view(torch.float8_e4m3fn).float()
        if self.overall is not None:
            rows = [end - start for start, end in pairwise((0, *self.ends))]
            each = [one.expand(count) for one, count in zip(self.overall, rows, strict=True)]
            scales = scales * torch.cat(each)[:, None]
        pairs, codes = _pairs(self.format, self.codes.device), self.lay("file").codes
        # A pair is moved as one number of 8 bytes: faster than rows of two by 3 ×.
        values = pairs.view(torch.float64).flatten().index_select(0, codes.int().flatten())
        blocks = values.view(torch.float32).view(*scales.shape, -1)
        return blocks.mul_(scales[..., None]).view(self.shape).to(dtype)

    def lay(self, order: str | None = None) -> "PackedMatrix":
        """The same with NVFP4's codes in another order, by default that of CUDA's kernels."""
        order = kernel_order(self.shape[1], self.ends) if order is None else order
        if self.order == order or self.format != "nvfp4":
            return self
        return replace(self, codes=lay(unlay(self.codes, self.order), order), order=order)

    def split(self, rows: int) -> Iterator["PackedMatrix"]:
        """So many rows at a time, in tiles whole ones, of a weight of one part."""
        for codes, scales in zip(self.codes.split(rows), self.scales.split(rows), strict=True):
            yield replace(self, codes=codes, scales=scales, ends=(len(codes),))


def kernel_order(columns: int, ends: Sequence[int]) -> str:
    """The order of CUDA's kernels for NVFP4's rows of so many weights: tiles, where they divide
    rows and columns; `ends`: the rows at which the parts of a matrix end."""
    rows, words = TILE
    whole = columns % (8 * words) == 0 and all(end % rows == 0 for end in ends)
    return "tiles" if whole else "words"


def lay(codes: Tensor, order: str) -> Tensor:
    """Bytes of E2M1 codes (N, K / 2), as files have them, in another order. Of each word w of 32
    bits w, w << 6, w rotated by 12 and (w << 2) ^ (w >> 6), under LAID, are then codes 0 and 1, 2
    and 3, …, each with its sign in bit 15 or 31 and the rest from bit 6 or 22 on. Raises ValueError
    for another order than `ORDERS` has, and for tiles of rows that are not whole tiles."""
    if order == "file":
        return codes
    whole = kernel_order(2 * codes.shape[1], (len(codes),)) == "tiles"
    if order not in ORDERS or (order == "tiles" and not whole):
        raise ValueError(f"codes {tuple(codes.shape)} cannot lie as {order!r}: see ORDERS and TILE")
    words = codes.contiguous().view(torch.int32)
    laid = torch.zeros_like(words)
    for bit, flips in enumerate(_laid_bits()):
        laid ^= -((words >> bit) & 1) & (flips - (flips >> 31 << 32))
    if order == "tiles":
        rows, columns = TILE
        laid = laid.view(-1, rows, words.shape[1] // columns, columns).transpose(1, 2)
    return laid.reshape(words.shape).view(torch.uint8)


def unlay(codes: Tensor, order: str) -> Tensor:
    """What `lay` was given."""
    if order == "file":
        return codes
    words = codes.contiguous().view(torch.int32)
    if order == "tiles":
        rows, columns = TILE
        tiles = words.view(-1, words.shape[1] // columns, rows, columns)
        words = tiles.transpose(1, 2).reshape(words.shape)
    plain = torch.zeros_like(words)
    for plane, pairs in enumerate(_planes(words)):
        for half in (0, 16):
            code = (pairs >> (half + 12) & 8) | (pairs >> (half + 6) & 7)
            plain |= code << (8 * plane + half // 4)
    return plain.view(torch.uint8)


LAID = 0x81C081C0  # where two codes are in a plane of a word


def _planes(word):
    """A word's four pairs of codes, in int32 or in a Python integer below 2**32."""
    rotated = (word << 12) | (word >> 20 & 0xFFF)
    return tuple(
        some & LAID for some in (word, word << 6, rotated, (word << 2) ^ (word >> 6 & 0x3FFFFFF))
    )


@cache
def _laid_bits() -> tuple[int, ...]:
    """For each bit of a word of eight codes, which bits of the laid word it flips: the inverse of
    `_planes`, which is linear over GF(2)."""
    spots = (6, 7, 8, 15, 22, 23, 24, 31)  # of two codes' bits, in order
    rows = []  # which laid bits a bit of a code is made of, and which bit that is
    for plane in range(4):
        for bit, spot in enumerate(spots):
            made = sum(1 << n for n in range(32) if _planes(1 << n)[plane] >> spot & 1)
            rows.append((made, 1 << (8 * plane + bit)))
    for bit in range(32):
        at = next(n for n in range(bit, 32) if rows[n][0] >> bit & 1)
        rows[bit], rows[at] = rows[at], rows[bit]
        for n in range(32):
            if n != bit and rows[n][0] >> bit & 1:
                rows[n] = (rows[n][0] ^ rows[bit][0], rows[n][1] ^ rows[bit][1])
    return tuple(
        sum((codes >> bit & 1) << laid for laid, (_, codes) in enumerate(rows)) for bit in range(32)
    )


def values_of(format: str) -> Tensor:
    """(16,) float32: what the codes of a 4-bit format stand for."""
    if format == "nvfp4":
        return e2m1.decode(torch.arange(16))
    return torch.tensor(nf4.VALUES) if format == "nf4" else torch.arange(16.0) - 8


@cache
@torch.inference_mode(False)  # it outlives the mode that it is first asked for in
def _pairs(format: str, device: torch.device) -> Tensor:
    """(256, 2) float32: the two values of a byte of codes, in order."""
    table, byte = values_of(format).to(device), torch.arange(256, device=device)
    halves = [table[byte >> 4], table[byte & 15]]
    return torch.stack(halves if FORMATS[format].high_first else halves[::-1], 1)


class PackedLinear(nn.Module):
    """x · weightᵀ + bias of packed weights; see the module. A subclass says the format."""

    format: ClassVar[str]
    block: ClassVar[int]
    options: ClassVar[dict] = {}
    scale_dtype: ClassVar[torch.dtype] = torch.float32
    scaled: ClassVar[bool] = False  # has one scale for the whole tensor beside the blocks'
    order = "file"  # of `ORDERS`: how `qdata` lies

    def __init__(self, in_features: int, out_features: int, bias: Tensor | None = None):
        """Memory for codes and scales. Raises FormatError where blocks do not divide a row."""
        super().__init__()
        if in_features % self.block:
            raise FormatError(
                f"{self.format}: rows of {in_features} weights are no multiple of {self.block}, "
                "those that share a scale; skip the layer, or choose a format of smaller blocks"
            )
        self.in_features, self.out_features = in_features, out_features
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        blocks = in_features // self.block
        empty = torch.zeros(out_features, in_features // 2, dtype=torch.uint8)
        self.register_buffer("qdata", empty)
        self.register_buffer("scale", torch.zeros(out_features, blocks, dtype=self.scale_dtype))
        if self.scaled:
            self.register_buffer("tensor_scale", torch.ones(1))

    @classmethod
    @torch.no_grad()
    def of(
        cls, weight: Tensor, bias: Tensor | None = None, headroom: float = 1.0
    ) -> "PackedLinear":
        """Quantises a weight (N, K), on its device. Raises FormatError for NaN and infinity.

        `headroom`: of the tensor's scale, for weights that are to grow under it.
        """
        (rows, columns), kind = weight.shape, FORMATS[cls.format]
        with torch.device("meta"):
            made = cls(columns, rows)
        made.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        pieces, options = weight.detach().split(max(1, AT_ONCE // columns)), dict(cls.options)
        if cls.scaled:
            each = [nvfp4.tensor_scale(finite(some, cls.format), headroom) for some in pieces]
            options["scale"] = torch.stack(each).max()
            made.tensor_scale = options["scale"].reshape(1)
        codes, scales = [], []
        for some in pieces:
            q = kind.quantise(some, **options)
            codes.append(kind.pack(q).data.view(len(some), -1))
            scales.append(q.parts["scales"].view(len(some), -1))
        made.qdata, made.scale = torch.cat(codes), torch.cat(scales)
        return made

    def quantised(self) -> Quantised:
        """Codes and parts as `ember.formats` has them."""
        kind, parts = FORMATS[self.format], {"scales": self.scale}
        if self.format == "nf4":
            parts["scales"] = self.scale.view(-1)
        if self.scaled:
            parts["tensor_scale"] = self.tensor_scale
        shape = (self.out_features, self.in_features)
        packed = Packed(self.format, shape, self.matrix.lay("file").codes.reshape(-1), parts)
        return kind.unpack(packed)

    def lay(self, order: str) -> None:
        """Puts NVFP4's codes in another order, in place; `tiles` where `kernel_order` says so."""
        if self.order == order or self.format != "nvfp4":
            return
        with torch.inference_mode(self.qdata.is_inference()), torch.no_grad():
            for some in self.qdata.split(_rows_of(AT_ONCE, self.in_features)):
                some.copy_(lay(unlay(some, self.order), order))
        self.order = order

    @property
    def matrix(self) -> PackedMatrix:
        """What kernels read; views of the buffers."""
        overall = self.tensor_scale if self.scaled else None
        ends = (self.out_features,)
        return PackedMatrix(self.format, self.qdata, self.scale, overall, ends, self.order)

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.matrix
        if x.is_cuda or len(matrix) * self.in_features <= PIECE:
            return F.linear(x, matrix.dense(x.dtype), self.bias)
        # In pieces that a core's cache holds: 2 to 3 × as fast, and no second large weight.
        rows = _rows_of(PIECE, self.in_features)
        parts = [F.linear(x, one.dense(x.dtype)) for one in matrix.split(rows)]
        return torch.cat(parts, -1) + (0 if self.bias is None else self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"

    def _apply(self, fn, recurse: bool = True):
        """Scales keep their type: `to(torch.bfloat16)` asks for activations in another one."""
        own = {id(buffer) for buffer in self.buffers(recurse=False)}

        def kept(tensor: Tensor) -> Tensor:
            if id(tensor) not in own:
                return fn(tensor)
            return fn(tensor.view(torch.uint8)).view(tensor.dtype)

        return super()._apply(kept, recurse)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.order != "file":
            destination[f"{prefix}qdata"] = unlay(self.qdata, self.order)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """Takes `weight.qdata` for `qdata` and so on, E4M3 for its bits, and where there is no
        `tensor_scale` 1: blocks alone."""
        for name in dict(self.named_buffers(recurse=False)):
            key, other = f"{prefix}{name}", f"{prefix}weight.{name}"
            if other in state_dict:
                state_dict[key] = state_dict.pop(other)
        scale = state_dict.get(f"{prefix}scale")
        if scale is not None and scale.dtype == torch.float8_e4m3fn:
            state_dict[f"{prefix}scale"] = scale.view(torch.uint8)
        elif scale is not None and scale.dtype != self.scale_dtype:
            raise FormatError(
                f"{prefix}scale is {scale.dtype}; scales of {self.format} are {self.scale_dtype}. "
                "They are of another format: load the file into layers of that one"
            )
        if f"{prefix}qdata" in state_dict:
            self.lay("file")  # also where what is loaded turns out not to fit
        if self.scaled and f"{prefix}qdata" in state_dict:
            state_dict.setdefault(f"{prefix}tensor_scale", torch.ones(1))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _rows_of(weights: int, columns: int) -> int:
    """Rows of about so many weights, in whole tiles."""
    return max(TILE[0], weights // columns // TILE[0] * TILE[0])


class LinearNVFP4(PackedLinear):
    """E2M1 codes, an E4M3 scale for 16 neighbours, a float32 scale for all (4.5 bits)."""

    format, block, scale_dtype, scaled = "nvfp4", nvfp4.BLOCK, torch.uint8, True


class LinearNF4(PackedLinear):
    """Quantiles of the normal distribution, a float32 scale for 64 neighbours (4.5 bits)."""

    format, block = "nf4", nf4.BLOCK


class LinearINT4(PackedLinear):
    """Symmetric integers, a float32 scale for 32 neighbours (5 bits)."""

    format, block = "int4", 32
    options: ClassVar[dict] = {"group": 32, "scale_dtype": torch.float32}


PACKED: dict[str, type[PackedLinear]] = {
    cls.format: cls for cls in (LinearNVFP4, LinearNF4, LinearINT4)
}


def packed_class(format: str) -> type[PackedLinear]:
    """The layer of a format. Raises FormatError for one that no layer has."""
    if format not in PACKED:
        format_named(format)  # not even a number format
        raise FormatError(f"no linear layer keeps {format} weights.{nearest(format, PACKED)}")
    return PACKED[format]


@torch.no_grad()
def quantise_decoder(decoder, format: str, skip: Collection[str] = ("lm_head",)) -> None:
    """Packs a decoder's linear layers in place, one after another: never two copies of a layer.

    `skip`: names of layers, or of their last part, that stay dense. A head that is the embedding is
    untied where it is packed: the embedding stays as it is. Raises FormatError before anything is
    changed where a row is no multiple of the format's block.
    """
    cls = packed_class(format)
    chosen = list(_dense_layers(decoder, skip))
    for name, _, _, linear in chosen:
        if linear.in_features % cls.block:
            raise FormatError(
                f"{name} has rows of {linear.in_features} weights, no multiple of {cls.block}, the "
                f"block of {format}; add it to `skip`, or choose a format of smaller blocks"
            )
    ties = decoder.lm_head is None and "lm_head" not in skip
    if ties and decoder.arch.hidden_size % cls.block:
        raise FormatError(f"the head's rows are no multiple of {cls.block}; skip lm_head")
    for _, parent, child, linear in chosen:
        setattr(parent, child, cls.of(linear.weight, linear.bias).train(linear.training))
    if ties:
        decoder.lm_head = cls.of(decoder.embed_tokens.weight).train(decoder.training)
        decoder.arch = replace(decoder.arch, tie_embeddings=False)


def _dense_layers(decoder, skip: Collection[str]) -> Iterator[tuple]:
    for name, module in list(decoder.named_modules()):
        parent, _, child = name.rpartition(".")
        if type(module) is nn.Linear and not {name, child} & {*skip}:
            yield name, decoder.get_submodule(parent), child, module


@torch.no_grad()
def densify(decoder: nn.Module, names: Collection[str] | None = None) -> None:
    """Makes packed layers dense in place, in the embedding's type: all, or those of `names`."""
    dtype = decoder.embed_tokens.weight.dtype
    for name, packed in list(decoder.named_modules()):
        if not isinstance(packed, PackedLinear) or (names is not None and name not in names):
            continue
        linear = nn.Linear(packed.in_features, packed.out_features, device="meta")
        linear.weight = nn.Parameter(packed.matrix.dense(dtype))
        linear.bias = None if packed.bias is None else nn.Parameter(packed.bias.to(dtype))
        parent, _, child = name.rpartition(".")
        setattr(decoder.get_submodule(parent), child, linear.train(packed.training))
