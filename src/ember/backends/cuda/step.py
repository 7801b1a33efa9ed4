"""The decoding step in kernels of its own, and sampling after it: no host between two tokens.

Contract. `KernelStep` runs the first rows of its memory: `arrange` says how many, where each stands
and which prompt it reads (or `stand`, that all stand at one position of their own memory), then
`sample` and `advance` take turns, each one CUDA graph, made for a number of rows and reused.
Candidates read the KV of their prompt where it lies, so that nothing has to be copied.

What each layer does: product (qkv) · attention, its parts merged · product (o, + residual) ·
product (gate and up, act · up) · product (down, + residual). Where the MLP runs beside attention,
one row takes two products at once: qkv and up · attention, merged · down and o, + residual, where
down is under way while attention is. Norms
are part of the products of one row, plain RMSNorms of those of up to 8. From 9 rows on a product
that adds to the residual stream splits its columns, and who sums them norms, too; so it is in fewer
rows where norms are of another kind, or of what is added, or where the MLP runs beside attention.
Above 128 rows the products are the library's.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ember.backends.cuda import packed
from ember.backends.cuda.attention import Attention, Sharing, shared_memory, upload
from ember.backends.cuda.packed import tiling_of as packed_tiling
from ember.backends.cuda.prefill import activate
from ember.backends.cuda.products import (
    FEW_ROWS,
    NORM_TILE,
    Normed,
    Plan,
    Tiling,
    add_normed,
    embed,
    matvec,
    skinny,
    wide,
)
from ember.backends.cuda.sampling import Sampler
from ember.backends.packing import Norm, PackedDecoder, Weight
from ember.backends.sampling import SamplingParams
from ember.model.architecture import Architecture
from ember.model.decoder import embedding_scale
from ember.model.packed import PackedMatrix

FUSED = frozenset({"norm", "mlp"})
"""What a step does in one kernel and may be told not to, to measure what that saves where norms are
not plain RMSNorms alone: `norm`, sums, residual and norms in products or `add_normed`, and two
products at once; `mlp`, the activation in the product before it."""
EXACT = 16  # up to so many rows a graph each; above, of the next multiple
MULTIPLE = {64: 8, 1024: 32}  # up to so many rows: of what


class Seat(NamedTuple):
    """Where a row stands: its prompt's start in the arena and length, tokens of its own, of which
    the last one has still to run, and the position of the prompt's first token."""

    start: int
    prompt: int
    own: int
    offset: int = 0


class KernelStep:
    """A step over one packed decoder and one block of memory; see the module."""

    def __init__(
        self,
        arch: Architecture,
        weights: PackedDecoder,
        rows: Tensor,
        positions: int,
        prompts: Tensor | None = None,
    ):
        """`rows` (L, 2, R, Hkv, W, D) and `prompts` (L, 2, Hkv, T, D) are memory for KV;
        `positions`: the most tokens of a sequence."""
        slots, device, dtype = rows.shape[2], rows.device, rows.dtype
        tall = tall_rows(slots)
        self._arch, self._weights, self._kv = arch, weights, rows
        self._attention = Attention(arch, rows, positions, prompts)
        self._tables = self._attention.tables
        self._tokens = torch.zeros(slots, dtype=torch.long, device=device)

        def buffer(width: int, rows: int = slots) -> Tensor:
            return torch.zeros(rows, width, dtype=dtype, device=device)

        heads, d = arch.num_heads, arch.head_dim
        self._x = buffer(arch.hidden_size, tall)
        self._qkv = buffer((heads + 2 * arch.num_kv_heads) * d)
        self._attended = buffer(heads * d, tall)
        self._acted = buffer(arch.intermediate_size, tall)
        self.logits = buffer(arch.vocab_size)
        self._normed: dict[int, Normed] = {}
        self._plain_normed = [buffer(arch.hidden_size) for _ in range(2)]
        # Up to 8 rows stay in registers while programs go through the weights.
        self._stays = dtype == torch.bfloat16 and all(map(packed.x_stays, weights.layers))
        self._plain = arch.norm == "rms" and not (
            arch.post_norms or arch.parallel_residual or arch.scaled_embedding
        )
        self._shared_memory = shared_memory(device)
        tilings = [
            self._tiling(min(slots, MANY_ROWS), arch.hidden_size, k, gated=False, summed=True)
            for k in (heads * d, arch.intermediate_size)
        ]
        most = max(tiling.splits for tiling in tilings) * min(slots, MANY_ROWS)
        self._packed = isinstance(weights.layers[0].qkv, PackedMatrix)
        # Of any kind, in the products of one row.
        self._row_norms = not (
            self._packed or arch.post_norms or (arch.parallel_residual and arch.gated_mlp)
        )
        if self._packed:
            memory = {"size": self._x.itemsize, "shared": self._shared_memory}
            most = max(most, packed.most_sums(min(slots, MANY_ROWS), weights.layers[0], **memory))
        self._sums = torch.zeros(most * arch.hidden_size, device=device)
        at = self._tables.position
        self._sampler = Sampler(self.logits, self._tokens, at, rows.shape[4])
        self._draws = {"noise": False, "cut": False, "ranked": False, "alternatives": 0}
        self._rows, self._sharing = slots, Sharing(0, 1)
        self.fused = FUSED  # before the first step
        self._use_graphs = False
        self._graphs: dict[tuple, torch.cuda.CUDAGraph] = {}
        self._pool = None
        # Dependent launches need Hopper or newer; the kernels run without them all the same.
        self._pdl = rows.is_cuda and torch.cuda.get_device_capability(device) >= (9, 0)

    def stand(self, position: int) -> None:
        """From now on every row is at a position of its own memory and shares nothing."""
        self._tables.position.fill_(position)
        self._tables.shared.zero_()
        self._rows, self._sharing = len(self._tokens), Sharing(0, 1)

    def capture(self) -> None:
        """From now on everything runs as CUDA graphs, recorded when first used."""
        self._use_graphs = True

    @property
    def tokens(self) -> Tensor:
        """(R,): what was sampled last and runs next."""
        return self._tokens

    @property
    def x(self) -> Tensor:
        """(R, H): the residual stream after the layers."""
        return self._x[: len(self._tokens)]

    def arrange(self, seats: Sequence[Seat]) -> None:
        """From now on the rows are these. Positions are those of the last token that a row has,
        its own or its prompt's, which `sample` counts up."""
        self._rows = self._bucket(len(seats))
        before = [s.offset + s.prompt for s in seats]
        ends = [first + s.own - 1 for first, s in zip(before, seats, strict=True)]
        found: dict[tuple[int, int], list[int]] = {}
        for row, seat in enumerate(seats):
            found.setdefault((seat.start, seat.prompt), []).append(row)
        per = min(self._attention.most, _power(max(map(len, found.values()))))
        groups = [
            (*prompt, rows[first : first + per])
            for prompt, rows in found.items()
            for first in range(0, len(rows), per)
        ]
        count = min(_power(len(groups)), self._rows)
        # Spare rows stand at 0 and write into their own memory, which nobody reads.
        self._tables.fill(ends, before, groups + [(0, 0, ())] * (count - len(groups)), per)
        self._sharing = Sharing(count, per)

    def _bucket(self, rows: int) -> int:
        """The number of rows of the graph that runs so many."""
        if rows <= EXACT:
            return rows
        multiple = next((m for most, m in MULTIPLE.items() if rows <= most), 64)
        return min(-(-rows // multiple) * multiple, len(self._tokens))

    def draw(self, params: Sequence[SamplingParams], seeds: Sequence[int], steps: Sequence[int]):
        """How the rows sample: their parameters, seeds, and tokens sampled so far."""
        sampler = self._sampler
        free = [not p.greedy for p in params]
        upload(sampler.inverse, [1.0 if p.greedy else 1 / p.temperature for p in params])
        upload(sampler.noise, [float(f) for f in free])
        # Greedy takes the best, which no cut removes.
        upload(sampler.top_k, [p.top_k * f for p, f in zip(params, free, strict=True)])
        upload(sampler.top_p, [p.top_p if f else 1.0 for p, f in zip(params, free, strict=True)])
        upload(sampler.min_p, [p.min_p * f for p, f in zip(params, free, strict=True)])
        upload(sampler.seeds, seeds)
        upload(sampler.steps, steps)
        if not any(p.ranked for p in params):
            sampler.keep_all()
        self._draws = {
            "noise": any(free),
            "cut": any(p.cuts for p in params),
            "ranked": any(p.ranked for p in params),
            "alternatives": max(p.logprobs or 0 for p in params),
        }

    @property
    def weight_bytes(self) -> dict[str, int]:
        """Bytes of weights that a step reads in each of its `parts`."""
        qkv, o, gate_up, down = (
            sum(getattr(layer, name).nbytes for layer in self._weights.layers)
            for name in ("qkv", "o", "gate_up", "down")
        )
        both = {"qkv and gate_up": qkv + gate_up, "down and o": o + down}
        alone = {"qkv": qkv, "o": o, "gate_up": gate_up, "down": down}
        return alone | both | {"head": self._weights.head.nbytes}

    def sample(self) -> None:
        """Chooses each row's next token from the logits."""
        rows, draws = self._rows, self._draws
        self._run(("sample", rows, *draws.values()), lambda: self._sampler.run(rows=rows, **draws))

    def advance(self) -> None:
        """Runs the chosen tokens; their logits are the next to sample from."""
        self._run(("step", self._rows, self._sharing), self._step)

    def sampled(self, steps: int, rows: int) -> tuple[Tensor, ...]:
        """Of the first rows in the first steps of the history: tokens (steps, rows), logprobs, raw
        logprobs, and alternatives' ids and raw logprobs where they are noted. On the device."""
        sampler, here = self._sampler, (slice(steps), slice(rows))
        found = (sampler.history, sampler.logprobs, sampler.raw_logprobs)
        found += sampler.alternatives.get(self._draws["alternatives"], ())
        return tuple(tensor[here] for tensor in found)

    def rewind(self) -> None:
        """The history begins anew."""
        self._sampler.ticks.zero_()

    def _run(self, name: tuple, call) -> None:
        if not self._use_graphs:
            call()
            return
        graph = self._graphs.get(name)
        if graph is None:
            graph = self._graphs[name] = self._record(call)
        graph.replay()

    def _record(self, call) -> torch.cuda.CUDAGraph:
        """A graph of the call, which is carried out once before, so that its kernels are compiled.

        What that overwrites and the replay reads is put back.
        """
        sampler = self._sampler
        kept = (self.logits, self._tokens, self._tables.position, sampler.steps, sampler.ticks)
        before = [tensor.clone() for tensor in kept]
        stream = torch.cuda.Stream(self._kv.device)
        stream.wait_stream(torch.cuda.current_stream(self._kv.device))
        with torch.cuda.stream(stream):
            call()
        torch.cuda.current_stream(self._kv.device).wait_stream(stream)
        for tensor, value in zip(kept, before, strict=True):
            tensor.copy_(value)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            call()
        self._pool = graph.pool()
        return graph

    def parts(self) -> dict[str, Callable[[int], None]]:
        """The kernels of one layer, in order, by name: each call launches one for a layer.

        Before them `embed`, after them `head`, which take no heed of the layer.
        """
        rows = self._rows
        arch, weights, pdl, attention = self._arch, self._weights, self._pdl, self._attention
        layers, eps, sharing = weights.layers, arch.norm_eps, self._sharing
        inside = self._plain or (rows == 1 and self._row_norms and "norm" in self.fused)
        apart = rows > FEW_ROWS or not inside or (self._packed and rows >= packed.FROM_ROWS)
        few = rows > 1 and not apart
        both = arch.parallel_residual and not apart
        if few and rows not in self._normed:
            size, like = arch.hidden_size, self._x
            self._normed[rows] = Normed(rows, size, like.dtype, like.device)
        stays = self._stays and packed.FROM_ROWS <= rows <= FEW_ROWS
        wholes = [whole[:rows] for whole in self._plain_normed]
        normed = self._normed[rows] if few else wholes[0]
        mlp_normed = wholes[1] if arch.parallel_residual else normed
        tokens, x, qkv_out, logits = (
            buffer[:rows] for buffer in (self._tokens, self._x, self._qkv, self.logits)
        )
        tall = tall_rows(rows)  # of what adds to the residual stream
        all_x = self._x[:tall]
        all_attended, all_acted = self._attended[:tall], self._acted[:tall]
        attended, acted = all_attended[:rows], all_acted[:rows]

        def norms_of(index: int) -> list[tuple[Norm, Tensor | Normed]]:
            """What the residual stream goes through where it enters a layer, and where to."""
            if index == len(layers):
                return [(weights.norm, normed)]
            layer = layers[index]
            both = [(layer.input_norm, normed), (layer.post_norm, mlp_normed)]
            return both if arch.parallel_residual else both[:1]

        def product(source, weight, out, *, norm=None, residual=None, feeds=(), **options):
            """`norm`: of the input, and where it lies normed; `feeds`: those that the output goes
            through next."""
            if apart:
                source = source if norm is None else norm[1]
                self._apart(source, weight, out, residual=residual, feeds=feeds, **options)
                return
            options |= {"residual": residual, "eps": eps}
            options.pop("post", None)  # there is none
            if rows == 1:
                options |= {"norm": None if norm is None else norm[0], "kind": arch.norm}
                _matvec(source, weight, out, summed=residual is not None, pdl=pdl, **options)
            else:
                for by, _ in feeds:
                    options |= {"normed": normed, "next_norm": by.weight}
                _skinny(source if norm is None else normed, weight, out, pdl=pdl, **options)

        def embedding(_: int) -> None:
            if few:
                [(first, _)] = norms_of(0)
                embed(tokens, weights.embedding, x, normed, first.weight, pdl=pdl)
                return
            torch.index_select(weights.embedding, 0, tokens, out=x)
            if arch.scaled_embedding:
                x.mul_(embedding_scale(arch, x.dtype))
            if apart:
                self._add_normed(x, norms_of(0))

        def qkv(index: int) -> None:
            layer = layers[index]
            norm = (layer.input_norm, normed)
            product(x, layer.qkv, qkv_out, norm=norm, bias=layer.qkv_bias)

        def attend(index: int) -> None:
            attention(
                index,
                qkv_out,
                None if weights.qk_norms is None else weights.qk_norms[index],
                attended,
                sharing,
                eps=eps,
                late=both,
                early=stays,
                pdl=pdl,
            )

        def o(index: int) -> None:
            layer = layers[index]
            feeds = [] if arch.parallel_residual else [(layer.post_norm, mlp_normed)]
            added = {"residual": all_x, "bias": layer.o_bias, "post": layer.attn_out_norm}
            product(all_attended, layer.o, all_x, feeds=feeds, **added)

        def act(call: Callable) -> None:
            """The MLP's product, by a call that is told where to and how, with its activation."""
            if "mlp" in self.fused:
                call(acted, gated=arch.gated_mlp, act=arch.activation)
                return
            width = arch.intermediate_size * (1 + arch.gated_mlp)
            raw = torch.empty(rows, width, dtype=x.dtype, device=x.device)
            call(raw)
            activate(raw, arch, acted, pdl=pdl)

        def gate_up(index: int) -> None:
            layer = layers[index]
            options = {"norm": (layer.post_norm, mlp_normed), "bias": layer.gate_up_bias}
            act(lambda out, **how: product(x, layer.gate_up, out, **options, **how))

        def down(index: int) -> None:
            layer = layers[index]
            added = {"residual": all_x, "bias": layer.down_bias, "post": layer.mlp_out_norm}
            product(all_acted, layer.down, all_x, feeds=norms_of(index + 1), **added)

        def head(_: int) -> None:
            product(x, weights.head, logits, norm=(weights.norm, normed))

        def qkv_and_gate_up(index: int) -> None:
            layer, options = layers[index], {"kind": arch.norm, "eps": eps, "pdl": pdl}
            options |= {"norm": layer.input_norm, "bias": layer.qkv_bias, "summed": False}
            up = (layer.gate_up, layer.gate_up_bias, layer.post_norm)
            act(
                lambda out, **how: _matvec(
                    x, layer.qkv, qkv_out, beside=(out, *up), **options, **how
                )
            )

        def down_and_o(index: int) -> None:
            layer = layers[index]
            more = (attended, layer.o, layer.o_bias)
            added = {"bias": layer.down_bias, "more": more, "residual": x, "ready": True}
            _matvec(acted, layer.down, x, summed=True, pdl=pdl, **added)

        if both:
            return {
                "embed": embedding,
                "qkv and gate_up": qkv_and_gate_up,
                "attention": attend,
                "down and o": down_and_o,
                "head": head,
            }
        return {
            "embed": embedding,
            "qkv": qkv,
            "attention": attend,
            "o": o,
            "gate_up": gate_up,
            "down": down,
            "head": head,
        }

    def _apart(
        self,
        x: Tensor,
        weight: Tensor,
        out: Tensor,
        *,
        residual: Tensor | None = None,
        feeds: Sequence[tuple[Norm, Tensor]] = (),
        post: Norm | None = None,
        bias: Tensor | None = None,
        gated: bool = False,
        act: str = "",
    ) -> None:
        """A product of an input that is normed already. What is added to the residual stream, where
        there is `post` through that norm, leaves it normed by those it feeds. It has `tall_rows`,
        of which those that are too many are nobody's."""
        rows, pdl, parts = self._rows, self._pdl, None
        is_packed = isinstance(weight, PackedMatrix)
        adds, few = residual is not None, rows < (packed.FROM_ROWS if is_packed else FEW_ROWS + 1)
        alone = few and post is None and not feeds  # nobody has to add but the product itself
        summed = adds and not alone
        options = {} if summed else {"bias": bias, "gated": gated, "act": act}
        tiling = None
        if self._stays and is_packed and packed.FROM_ROWS <= rows <= FEW_ROWS:
            tiling = packed.skinny_tiling(weight, summed=adds)
        if tiling is None:
            tiling = self._tiling(rows, *weight.shape, packed=is_packed, gated=gated, summed=adds)
        if summed and tiling is not None:
            splits = 1 if few else tiling.splits
            parts = self._sums[: splits * rows * len(weight)].view(splits, rows, -1)
        if few:
            options |= {"residual": None if summed else residual, "pdl": pdl}
            target = parts[0] if summed else out
            if rows == 1:
                _matvec(x, weight, target, summed=adds, **options)
            else:
                _skinny(x, weight, target, **options)
        elif tiling is not None:
            by = packed.wide if is_packed else wide
            by(x, weight, parts if summed else out, tiling=tiling, pdl=pdl, **options)
        elif post is not None:
            weight = packed.dense(weight, x.dtype) if is_packed else weight
            parts = torch.mm(x[:rows], weight.t())[None]
        else:
            self._library(x, weight, out, bias=bias, residual=residual, acts=bool(act))
            bias = None
        if feeds or parts is not None:
            self._add_normed(out[:rows], feeds, parts=parts, bias=bias, post=post, pdl=pdl)

    def _add_normed(self, x: Tensor, feeds: Sequence[tuple[Norm, Tensor]], **added) -> None:
        call = add_normed if "norm" in self.fused else plain_add_normed
        early = self._stays and self._rows <= FEW_ROWS
        call(x, feeds, eps=self._arch.norm_eps, kind=self._arch.norm, early=early, **added)

    def _library(
        self,
        x: Tensor,
        weight: Tensor,
        out: Tensor,
        *,
        bias: Tensor | None,
        residual: Tensor | None,
        acts: bool,
    ) -> None:
        """A product by torch's operators."""
        if isinstance(weight, PackedMatrix):
            weight = packed.dense(weight, x.dtype)
        if acts:
            activate(F.linear(x, weight, bias), self._arch, out, pdl=self._pdl)
            return
        if residual is None:
            torch.mm(x, weight.t(), out=out)
        else:
            torch.addmm(residual, x, weight.t(), out=out)
        if bias is not None:
            out += bias

    def _tiling(self, *shape: int, packed: bool = False, **kind: bool) -> Tiling | None:
        cut = packed_tiling if packed else many_tiling
        return cut(*shape, **kind, size=self._x.itemsize, shared=self._shared_memory)

    def _step(self) -> None:
        parts = self.parts()
        embedding, head = parts.pop("embed"), parts.pop("head")
        embedding(0)
        for index in range(len(self._weights.layers)):
            for part in parts.values():
                part(index)
        head(0)


def plain_add_normed(
    x: Tensor,
    norms: Sequence[tuple[Norm, Tensor]],
    *,
    eps: float,
    kind: str,
    parts: Tensor | None = None,
    bias: Tensor | None = None,
    post: Norm | None = None,
    early: bool = False,
    pdl: bool = False,
) -> None:
    """`add_normed` by torch's operators."""

    def normed(x: Tensor, norm: Norm) -> Tensor:
        size, weight = x.shape[-1:], norm.weight.to(x.dtype)
        if kind == "layer":
            bias = None if norm.bias is None else norm.bias.to(x.dtype)
            return F.layer_norm(x, size, weight, bias, eps)
        return F.rms_norm(x, size, weight + (kind == "rms_offset"), eps)

    if parts is not None:
        added = parts.sum(0)
        if bias is not None:
            added += bias
        x += added if post is None else normed(added, post)
    for norm, out in norms:
        out.copy_(normed(x, norm))


MANY_ROWS = 128  # above, the library's products read the weights as fast
TALL_FROM, TALL = 256, 128  # above so many, the library is asked for a multiple of that
PROGRAMS = 132  # that keep the device busy: a multiprocessor each


def tall_rows(rows: int) -> int:
    """Of a product that adds to the residual stream: the library's takes 76 microseconds for down
    with 800 rows and 59 with 896 (H200)."""
    return rows if rows <= TALL_FROM else -(-rows // TALL) * TALL


def matvec_plan(columns: int, *, gated: bool, summed: bool, centred: bool = False) -> Plan:
    """How a product of one row is cut; `summed`: it adds to the residual stream, and has few rows;
    `centred`: of an input through a LayerNorm. Measured on an H200 (docs/engine.md)."""
    if summed:  # programs of one warp: none waits for another, and all of them start at once
        return Plan(
            rows=2, columns=min(256, _power(columns)), ahead=6 if columns > 8192 else 14, warps=1
        )
    if centred and not gated and columns <= 3072:
        # A LayerNorm costs a warp as many instructions as four rows of the weight: one warp.
        return Plan(rows=4, columns=min(256, _power(columns)), ahead=5, warps=1)
    width = min(1024, _power(columns))
    return Plan(rows=2 if gated else 4, columns=width, ahead=3, warps=4)


def skinny_plan(columns: int, *, gated: bool) -> Plan:
    """How a product of few rows is cut; measured on an H200 (docs/engine.md)."""
    warps = 2 if gated else 4
    width = min(128, max(16, _power(columns) // warps))
    return Plan(rows=NORM_TILE, columns=width, ahead=3 if gated else 4, warps=warps)


def many_tiling(
    rows: int, out: int, columns: int, *, gated: bool, summed: bool, size: int, shared: int
) -> Tiling | None:
    """How a product of many rows is cut; `summed`: someone adds up split columns; `size`: bytes of
    a number, `shared`: of a program's memory. None: the library is as fast. Measured on an H200
    (docs/engine.md)."""
    if rows > MANY_ROWS:
        return None
    batch, tiles = max(16, _power(rows)), -(-out // 64)
    if gated:
        tiling = Tiling(min(batch, 64), 64, columns=64, ahead=4 if batch <= 64 else 3, warps=4)
    elif summed:
        splits = min(-(-columns // 128), max(1, PROGRAMS // tiles))
        tiling = Tiling(batch, 64, columns=128, ahead=4, warps=4, splits=splits)
    elif batch <= 64:
        tiling = Tiling(batch, 64, columns=64 if tiles > 2 * PROGRAMS else 128, ahead=4, warps=4)
    else:
        return None
    column = tiling.ahead * (tiling.batch + (1 + gated) * tiling.rows) * size
    while tiling.columns > 16 and tiling.columns * column > shared:
        tiling = replace(tiling, columns=tiling.columns // 2)
    return tiling


def _power(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _matvec(
    x: Tensor,
    weight: Weight,
    out: Tensor,
    *,
    summed: bool,
    gated: bool = False,
    norm: Norm | None = None,
    kind: str = "rms",
    **options,
) -> None:
    if isinstance(weight, PackedMatrix):  # of norms it knows the plain one
        by = None if norm is None else norm.weight
        packed.matvec(x, weight, out, summed=summed, gated=gated, norm=by, **options)
        return
    columns = weight.shape[1]
    if options.get("more") is not None:
        columns += options["more"][1].shape[1]
    centred = norm is not None and kind == "layer"
    plan = matvec_plan(columns, gated=gated, summed=summed, centred=centred)
    matvec(x, weight, out, plan=plan, gated=gated, norm=norm, kind=kind, **options)


def _skinny(x, weight: Tensor, out: Tensor, *, gated: bool = False, **options) -> None:
    plan = skinny_plan(weight.shape[1], gated=gated)
    skinny(x, weight, out, plan=plan, gated=gated, **options)
