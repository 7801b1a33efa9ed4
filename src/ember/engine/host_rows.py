"""A decoding step on the CPU in float32 for rows of any lengths, whose prompts are shared.

Contract. `HostRows` runs the rows of a `SlottedCache`: each attends to its prompt's run, which all
its candidates read together, and to its own slot; the two are merged by log-sum-exp. Nothing is
padded and no row's arithmetic involves another row's numbers. Its last bits still depend on how
many rows there are, because the library rounds products of few rows differently; with `invariant`
every product is of one row, and a row is bit for bit the same in every batch, at some cost in time.

Shapes: B rows, H hidden, Hq and Hkv heads, N = Hq + Hkv, G = Hq / Hkv, D head dimension,
I intermediate, V vocabulary, L layers, T tokens of a prompt, W tokens of a slot.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ember.backends.packing import PackedDecoder
from ember.backends.threads import fastest_threads
from ember.cache.slotted import Run, SlottedCache
from ember.engine.step import swapped_tables
from ember.model.architecture import Architecture

VECTOR = 64  # numbers; no processor's loop takes more at once
_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class HostRows:
    """A step over one packed decoder and one cache; rows are the first ones of the cache.

    `tokens` (B,) are what `advance` runs, `logits` (B, V) what it leaves. `threads` is the number
    of torch's threads with which it is fastest.
    """

    def __init__(
        self,
        arch: Architecture,
        weights: PackedDecoder,
        cache: SlottedCache,
        positions: int,
        *,
        invariant: bool = False,
    ):
        """`positions`: the most tokens of a sequence. `invariant`: see the module."""
        self._arch, self._weights, self._cache, self._invariant = arch, weights, cache, invariant
        tables = swapped_tables(arch, positions, torch.float32, torch.device("cpu"))
        self._cos, self._sin = (table.numpy() for table in tables)
        self._swap = np.roll(np.arange(arch.head_dim), arch.head_dim // 2)
        self._kinds = np.repeat([0, 1], [arch.num_heads, arch.num_kv_heads])  # query or key
        self._norms = weights.qk_norms  # (L, 2, D)
        self._memory = cache.rows.numpy()  # (L, 2, R, Hkv, W, D)
        self._tokens = torch.zeros(cache.slots, dtype=torch.long)
        self._logits = torch.zeros(cache.slots, arch.vocab_size)
        self._buffers: dict[int, _Buffers] = {}
        self._runs: list[Run] = []  # each row's prompt
        self._own: list[int] = []  # tokens in each row's slot
        self._spans: list[tuple[int, int]] = []  # neighbours with equally many
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
        if rows not in self._buffers:
            self._buffers[rows] = _Buffers(self._arch, rows)
        self._run(self._buffers[rows])
        self._own = [own + 1 for own in self._own]

    def _sort(self) -> None:
        """Groups rows by prompt, so that a prompt's KV is read once for all of them, and neighbours
        by the length of their slots, which grow alike."""
        order = sorted(range(len(self._runs)), key=lambda row: self._runs[row].start)
        self._order = None if order == list(range(len(order))) else torch.tensor(order)
        self._back = None if self._order is None else self._order.argsort()
        key = (lambda row: row) if self._invariant else (lambda row: self._runs[row])
        self._groups = [
            (self._runs[order[first]], first, last) for first, last in _pieces(order, key)
        ]
        self._spans = _pieces(list(range(len(order))), lambda row: self._own[row])

    def _run(self, b: "_Buffers") -> None:
        arch, weights = self._arch, self._weights
        heads, kv_heads, d, eps = arch.num_heads, arch.num_kv_heads, arch.head_dim, arch.norm_eps
        cos, sin = self._rotation()
        torch.index_select(weights.embedding, 0, self.tokens, out=b.x)
        qkv = b.qkv.numpy().reshape(-1, heads + 2 * kv_heads, d)
        qk, v = qkv[:, : heads + kv_heads], qkv[:, heads + kv_heads :]
        k = b.rotated.numpy()[:, heads:]
        q = b.rotated[:, :heads].unflatten(1, (kv_heads, -1))  # (B, Hkv, G, D)
        for index, layer in enumerate(weights.layers):
            _norm(b.x_array, layer.input_norm, eps, b.normed_array)
            self._product(b.normed, layer.qkv, b.qkv)
            if layer.qkv_bias is not None:
                b.qkv += layer.qkv_bias
            self._rotate(qk, cos[index], sin[index], b.rotated.numpy())
            own, own_lse = self._attend_own(index, q, k, v)
            prompt, prompt_lse = self._attend_prompts(index, q)
            torch.sub(prompt_lse, own_lse, out=b.margin)
            # Shares of the softmax mass; see model.decoder for why both.
            on_prompt = b.head_view(torch.sigmoid(b.margins))
            on_own = b.head_view(torch.sigmoid(-b.margins))
            attended = torch.addcmul(prompt * on_prompt, own, on_own).flatten(1)
            b.x += self._product(attended, layer.o, b.hidden)
            if layer.o_bias is not None:
                b.x += layer.o_bias
            _norm(b.x_array, layer.post_norm, eps, b.normed_array)
            self._product(b.normed, layer.gate_up, b.gate_up)
            if layer.gate_up_bias is not None:
                b.gate_up += layer.gate_up_bias
            acted = torch.mul(F.silu(b.gate), b.up, out=b.acted)
            b.x += self._product(acted, layer.down, b.hidden)
            if layer.down_bias is not None:
                b.x += layer.down_bias
        _norm(b.x_array, weights.norm, eps, b.normed_array)
        self._product(b.normed, weights.head, self.logits)

    def _product(self, x: Tensor, weight: Tensor, out: Tensor) -> Tensor:
        """x (B, K) · weightᵀ (K, N)."""
        if not self._invariant:
            return torch.mm(x, weight.t(), out=out)
        for row in range(len(x)):
            torch.mm(x[row : row + 1], weight.t(), out=out[row : row + 1])
        return out

    def _rotation(self) -> tuple[np.ndarray, np.ndarray]:
        """cos and sin (L, B, N or 1, D) at the rows' positions, times query and key norms."""
        at = [run.length + own for run, own in zip(self._runs, self._own, strict=True)]
        cos, sin = self._cos[at, None], self._sin[at, None]  # (B, 1, D)
        if self._norms is None:
            shape = (self._arch.num_layers, *cos.shape)
            return np.broadcast_to(cos, shape), np.broadcast_to(sin, shape)
        straight = self._norms.numpy()[:, self._kinds][:, None]  # (L, 1, N, D)
        return straight * cos, np.take(straight, self._swap, axis=3) * sin

    def _rotate(self, qk: np.ndarray, cos: np.ndarray, sin: np.ndarray, out: np.ndarray) -> None:
        """Norms and rotates queries and keys (B, N, D)."""
        np.multiply(qk, cos, out=out)
        out += np.take(qk, self._swap, axis=2) * sin
        if self._norms is not None:  # the norm is one number a head, so it may come last
            square = np.vecdot(qk, qk) / qk.shape[2] + self._arch.norm_eps
            out /= np.sqrt(square)[:, :, None]

    def _attend_own(
        self, index: int, q: Tensor, k: np.ndarray, v: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """Stores the new k and v (B, Hkv, D), and attends to each row's slot as far as it goes."""
        keys, values = self._cache.rows[index].unbind(0)  # (R, Hkv, W, D)
        memory, found = self._memory[index], []
        for first, last in self._spans:
            own, stop = self._own[first], self._own[first] + 1
            memory[0, first:last, :, own], memory[1, first:last, :, own] = (
                k[first:last],
                v[first:last],
            )
            found.append(
                _attend(q[first:last], keys[first:last, :, :stop], values[first:last, :, :stop])
            )
        return _joined(found, 0)

    def _attend_prompts(self, index: int, q: Tensor) -> tuple[Tensor, Tensor]:
        """All candidates of a prompt over its run: they are just more queries."""
        q = q if self._order is None else q.index_select(0, self._order)
        q = q.transpose(0, 1)  # (Hkv, B, G, D)
        kv_heads, _, group, d = q.shape
        found = []
        for run, first, last in self._groups:
            keys, values = self._cache.segment(run, index)
            queries = q[:, first:last].reshape(1, kv_heads, -1, d)
            out, lse = _attend(queries, keys[None], values[None])
            shape = (last - first, group)
            found.append((out[0].unflatten(1, shape), lse[0].unflatten(1, shape)))
        out, lse = (x.transpose(0, 1) for x in _joined(found, 1))  # (B, Hkv, G, D)
        if self._order is None:
            return out, lse
        return out.index_select(0, self._back), lse.index_select(0, self._back)

    def _fastest_threads(self) -> int:
        trial = HostRows.__new__(HostRows)
        trial.__dict__ |= self.__dict__
        run = Run(0, max(1, min(64, len(self._cos) - 1)))
        # On memory of its own: others' KV must not be written to.
        trial._cache = SlottedCache(self._arch, prompt_tokens=run.length, rows=2, row_tokens=1)
        trial._memory = trial._cache.rows.numpy()
        rows = min(2, self._cache.slots)
        trial._runs, trial._own = [run] * rows, [0] * rows
        trial._sort()

        def step():
            trial._own = [0] * rows
            trial.advance()

        return fastest_threads(step)


def _norm(x: np.ndarray, weight: Tensor, eps: float, out: np.ndarray) -> None:
    """x (B, H) / sqrt(mean(x²) + eps) · weight."""
    np.multiply(x, weight.numpy(), out=out)
    out *= (1 / np.sqrt(np.vecdot(x, x) / x.shape[1] + eps))[:, None]


def _pieces(items: list, key: Callable) -> list[tuple[int, int]]:
    """Places (first, last) of neighbours with the same key."""
    found, first = [], 0
    for place in range(1, len(items) + 1):
        if place == len(items) or key(items[place]) != key(items[first]):
            found.append((first, place))
            first = place
    return found


def _joined(parts: list[tuple[Tensor, Tensor]], dim: int) -> tuple[Tensor, Tensor]:
    if len(parts) == 1:
        return parts[0]
    return torch.cat([out for out, _ in parts], dim), torch.cat([lse for _, lse in parts], dim)


class _Buffers:
    """What a step of so many rows writes to."""

    def __init__(self, arch: Architecture, rows: int):
        width = (arch.num_heads + 2 * arch.num_kv_heads) * arch.head_dim
        self.x, self.hidden = torch.empty(2, rows, arch.hidden_size).unbind()
        self.qkv = torch.empty(rows, width)
        self.gate_up = torch.empty(rows, 2 * arch.intermediate_size)
        self.gate, self.up = self.gate_up.chunk(2, 1)
        self.acted = torch.empty(rows, arch.intermediate_size)
        self.rotated = torch.empty(rows, arch.num_heads + arch.num_kv_heads, arch.head_dim)
        self.normed = torch.empty(rows, arch.hidden_size)
        # The same memory for NumPy, whose calls cost less on little data.
        self.x_array, self.normed_array = self.x.numpy(), self.normed.numpy()
        # Whole vectors, because the library's exponential of what is left over rounds differently.
        count, kv_heads = rows * arch.num_heads, arch.num_kv_heads
        self.margins = torch.zeros(-(-count // VECTOR) * VECTOR)
        self.margin = self.margins[:count].view(rows, kv_heads, -1)

    def head_view(self, values: Tensor) -> Tensor:
        """Values as long as `margins`, by row and query head: (B, Hkv, G, 1)."""
        return values[: self.margin.numel()].view_as(self.margin).unsqueeze(-1)
