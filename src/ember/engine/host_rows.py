"""A decoding step on the CPU in float32 for rows of any lengths, whose prompts are shared.

Contract. `HostRows` runs the rows of a `SlottedCache`: each attends to its prompt's run, which all
its candidates read together, and to its own slot; the two are merged by log-sum-exp. A row's result
does not depend on what else is in the batch, as far as the library's products of two and more rows
do not: weight times activations is computed that way round, because the other way round the library
takes a path of its own for few rows (seen with MKL). A row alone runs beside a copy of itself.

Shapes: B rows, H hidden, Hq and Hkv heads, G = Hq / Hkv, D head dimension, I intermediate,
V vocabulary, T tokens of a prompt, W tokens of a slot.
"""

import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ember.cache.slotted import Run, SlottedCache
from ember.engine.packing import PackedDecoder
from ember.engine.step import WORTH_THREADS, restored_threads, swapped_tables
from ember.model.architecture import Architecture

_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class HostRows:
    """A step over one packed decoder and one cache; rows are the first ones of the cache.

    `tokens` (B,) are what `advance` runs, `logits` (B, V) what it leaves. `threads` is the number
    of torch's threads with which it is fastest.
    """

    def __init__(
        self, arch: Architecture, weights: PackedDecoder, cache: SlottedCache, positions: int
    ):
        """`positions`: the most tokens of a sequence."""
        self._arch, self._weights, self._cache = arch, weights, cache
        cos, sin = swapped_tables(arch, positions, torch.float32, torch.device("cpu"))
        self._cos, self._sin = cos[:, None], sin[:, None]  # (positions, 1, D)
        self._swap = torch.arange(arch.head_dim).roll(arch.head_dim // 2)
        rows = max(2, cache.slots)
        self._tokens = torch.zeros(rows, dtype=torch.long)
        self._logits = torch.zeros(rows, arch.vocab_size)
        self._buffers: dict[int, _Buffers] = {}
        self._runs: list[Run] = []  # each row's prompt
        self._own: list[int] = []  # tokens in each row's slot
        self._order: Tensor | None = None  # rows sorted by prompt, None where they are
        self._groups: list[tuple[Run, int, int]] = []  # prompt, first and last row in that order
        self.threads = torch.get_num_threads()
        with torch.inference_mode():
            self.threads = self._fastest_threads()

    @property
    def tokens(self) -> Tensor:
        return self._tokens[: len(self._own)]

    @property
    def logits(self) -> Tensor:
        return self._logits[: len(self._own)]

    def is_current(self) -> bool:
        """Whether the decoder's parameters still lie where this step reads them."""
        return self._weights.is_current()

    def join(self, run: Run, rows: int, logits: Tensor) -> None:
        """Appends rows of a prompt, whose last logits (1, V) they sample from first."""
        self._runs += [run] * rows
        self._own += [0] * rows
        self.logits[len(self._own) - rows :] = logits
        self._sort()

    def leave(self, moves: Sequence[tuple[int, int]], rows: int) -> None:
        """Moves rows (from, to), in order; the first `rows` go on."""
        for source, target in moves:
            self._cache.move(source, target, self._own[source])
            self._runs[target], self._own[target] = self._runs[source], self._own[source]
            self._tokens[target] = self._tokens[source]
            self._logits[target] = self._logits[source]
        del self._runs[rows:], self._own[rows:]
        self._sort()

    def advance(self) -> None:
        """Runs the rows' tokens: their KV goes into the slots, the next logits into `logits`."""
        rows = len(self._own)
        if rows == 1:  # beside a copy of itself, whose KV nobody keeps
            self._tokens[1] = self._tokens[0]
        count = max(2, rows)
        if count not in self._buffers:
            self._buffers[count] = _Buffers(self._arch, count)
        self._run(self._buffers[count], rows)
        self._own = [own + 1 for own in self._own]

    def _sort(self) -> None:
        """Groups rows by prompt, so that a prompt's KV is read once for all of them."""
        order = sorted(range(len(self._runs)), key=lambda row: self._runs[row].start)
        self._order = None if order == list(range(len(order))) else torch.tensor(order)
        self._back = None if self._order is None else self._order.argsort()
        self._groups, first = [], 0
        for place, row in enumerate(order):
            following = order[place + 1] if place + 1 < len(order) else None
            if following is None or self._runs[following] != self._runs[row]:
                self._groups.append((self._runs[row], first, place + 1))
                first = place + 1

    def _run(self, b: "_Buffers", rows: int) -> None:
        arch, weights = self._arch, self._weights
        heads, d, eps = arch.num_heads, arch.head_dim, arch.norm_eps
        own = self._own if rows > 1 else self._own * 2
        runs = self._runs if rows > 1 else self._runs * 2
        positions = torch.tensor([run.length + n for run, n in zip(runs, own, strict=True)])
        cos, sin = self._cos.index_select(0, positions), self._sin.index_select(0, positions)
        slots, places = torch.arange(rows), torch.tensor(own[:rows])
        torch.index_select(weights.embedding, 0, self._tokens[: b.rows], out=b.x)
        x = b.x
        for index, layer in enumerate(weights.layers):
            normed = F.rms_norm(x, x.shape[1:], layer.input_norm, eps)
            torch.mm(layer.qkv, normed.t(), out=b.qkv_t)
            b.qkv.copy_(b.qkv_t.t())
            if layer.qkv_bias is not None:
                b.qkv += layer.qkv_bias
            qkv = b.qkv.view(b.rows, -1, d)
            q, k = qkv[:, :heads], qkv[:, heads : heads + arch.num_kv_heads]
            v = qkv[:, heads + arch.num_kv_heads :]
            if arch.qk_norm:
                norms = weights.qk_norms[index]
                q = F.rms_norm(q, (d,), norms[0], eps)
                k = F.rms_norm(k, (d,), norms[1], eps)
            q, k = self._rotate(q, cos, sin), self._rotate(k, cos, sin)
            keys, values = self._cache.rows[index].unbind(0)  # (R, Hkv, W, D)
            keys[slots, :, places] = k[:rows]
            values[slots, :, places] = v[:rows]
            self._attend_own(b, q, keys, values, own)
            self._attend_prompts(b, q, index, rows)
            # Shares of the softmax mass; see model.decoder for why both.
            on_prompt = torch.sigmoid(b.prompt_lse - b.own_lse).unsqueeze(-1)
            on_own = torch.sigmoid(b.own_lse - b.prompt_lse).unsqueeze(-1)
            attended = torch.addcmul(b.prompt_out * on_prompt, b.own_out, on_own).view(b.rows, -1)
            x = self._residual(x, layer.o, attended.t(), layer.o_bias, b.hidden_t)
            normed = F.rms_norm(x, x.shape[1:], layer.post_norm, eps)
            torch.mm(layer.gate_up, normed.t(), out=b.gate_up_t)
            if layer.gate_up_bias is not None:
                b.gate_up_t += layer.gate_up_bias[:, None]
            gate, up = b.gate_up_t.chunk(2, 0)
            x = self._residual(x, layer.down, F.silu(gate).mul_(up), layer.down_bias, b.hidden_t)
        normed = F.rms_norm(x, x.shape[1:], weights.norm, eps)
        torch.mm(weights.head, normed.t(), out=b.logits_t)
        self._logits[: b.rows].copy_(b.logits_t.t())

    def _attend_own(self, b: "_Buffers", q: Tensor, keys: Tensor, values: Tensor, own) -> None:
        """Each row over its own slot, as long as it is: nothing is padded."""
        q = q.unflatten(1, (self._arch.num_kv_heads, -1))  # (B, Hkv, G, D)
        outs, lses = [], []
        for row in range(len(self._own)):
            stop = own[row] + 1
            out, lse = _attend(
                q[row : row + 1], keys[row : row + 1, :, :stop], values[row : row + 1, :, :stop]
            )
            outs.append(out)
            lses.append(lse)
        if len(outs) < b.rows:
            outs, lses = outs * 2, lses * 2
        torch.cat(outs, out=b.own_out)
        torch.cat(lses, out=b.own_lse)

    def _attend_prompts(self, b: "_Buffers", q: Tensor, index: int, rows: int) -> None:
        """All candidates of a prompt over its run: they are just more queries."""
        kv_heads, d = self._arch.num_kv_heads, self._arch.head_dim
        q = q[:rows] if self._order is None else q.index_select(0, self._order)
        q = q.unflatten(1, (kv_heads, -1)).transpose(0, 1)  # (Hkv, B, G, D)
        group = q.shape[2]
        outs, lses = [], []
        for run, first, last in self._groups:
            keys, values = self._cache.segment(run, index)
            queries = q[:, first:last].reshape(1, kv_heads, -1, d)
            if queries.shape[2] == 1:  # the library has another path for one
                queries = queries.expand(-1, -1, 2, -1)
            out, lse = _attend(queries, keys[None], values[None])
            count = last - first
            out, lse = out[0, :, : count * group], lse[0, :, : count * group]
            outs.append(out.unflatten(1, (count, group)))
            lses.append(lse.unflatten(1, (count, group)))
        out = torch.cat(outs, 1).transpose(0, 1)  # (B, Hkv, G, D)
        lse = torch.cat(lses, 1).transpose(0, 1)
        if self._order is not None:
            out, lse = out.index_select(0, self._back), lse.index_select(0, self._back)
        b.prompt_out.copy_(out)
        b.prompt_lse.copy_(lse)

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x (B, heads, D) rotated by cos and sin (B, 1, D)."""
        return torch.addcmul(x * cos, x.index_select(2, self._swap), sin)

    @staticmethod
    def _residual(x: Tensor, weight: Tensor, y_t: Tensor, bias, out_t: Tensor) -> Tensor:
        """x + (weight · y_t)ᵀ (+ bias)."""
        torch.mm(weight, y_t, out=out_t)
        x += out_t.t()
        if bias is not None:
            x += bias
        return x

    def _fastest_threads(self) -> int:
        """torch's number of threads where they pay, 1 otherwise; as in `DecodeStep`."""
        trial, seconds = HostRows.__new__(HostRows), {}
        trial.__dict__ |= self.__dict__
        run = Run(0, max(1, min(64, len(self._cos) - 1)))
        # On memory of its own: others' KV must not be written to.
        trial._cache = SlottedCache(self._arch, prompt_tokens=run.length, rows=2, row_tokens=1)
        trial._runs, trial._own = [run, run], [0, 0]
        trial._sort()
        with restored_threads():
            for threads in (torch.get_num_threads(), 1):
                torch.set_num_threads(threads)
                times = []
                for _ in range(4):
                    began = time.perf_counter()
                    trial.advance()
                    trial._own = [0, 0]
                    times.append(time.perf_counter() - began)
                seconds[threads] = sorted(times)[1]
        fastest = min(seconds, key=seconds.get)
        return fastest if seconds[1] > WORTH_THREADS * seconds[fastest] else 1


class _Buffers:
    """What a step of so many rows writes to; `_t` are transposed, features by rows."""

    def __init__(self, arch: Architecture, rows: int):
        heads, kv_heads, d = arch.num_heads, arch.num_kv_heads, arch.head_dim
        self.rows = rows
        width = (heads + 2 * kv_heads) * d
        self.x = torch.empty(rows, arch.hidden_size)
        self.qkv_t, self.qkv = torch.empty(width, rows), torch.empty(rows, width)
        self.hidden_t = torch.empty(arch.hidden_size, rows)
        self.gate_up_t = torch.empty(2 * arch.intermediate_size, rows)
        self.logits_t = torch.empty(arch.vocab_size, rows)
        shape = (rows, kv_heads, heads // kv_heads)
        self.own_out, self.prompt_out = torch.empty(2, *shape, d).unbind()
        self.own_lse, self.prompt_lse = torch.empty(2, *shape).unbind()
