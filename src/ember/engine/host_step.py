"""The decoding step on the CPU in float32, for small models: few operations on fixed buffers.

Contract. As `DecodeStep`. What a small model's step costs is not arithmetic but the number of
operations, so those that a layer needs are counted: four matrix products, and about twenty small
operations, by torch or by NumPy (whose calls are cheaper on tiny arrays). Both see the same memory:
weights, cache and buffers are torch tensors, and the arrays are views of them.

Shapes: B rows, H hidden, Hq and Hkv heads, N = Hq + Hkv, G = Hq / Hkv, D head dimension,
I intermediate, L layers, T tokens including the new one.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ember.backends.packing import PackedDecoder, PackedLayer
from ember.cache.contiguous import ContiguousCache
from ember.model.architecture import Architecture


class HostStep:
    """A step over one packed decoder and one cache; the logits returned are its own buffer."""

    def __init__(
        self,
        arch: Architecture,
        weights: PackedDecoder,
        cache: ContiguousCache,
        cos: Tensor,
        sin: Tensor,
    ):
        """`cos` and `sin` (capacity, D): rotate(x) = cos · x + sin · (x with halves swapped)."""
        batch, d, heads = cache.batch, arch.head_dim, arch.num_heads + arch.num_kv_heads
        self._eps = arch.norm_eps
        self._layers = [_HostLayer(layer) for layer in weights.layers]
        self._embedding, self._norm = weights.embedding.numpy(), weights.norm.numpy()
        self._head = weights.head.t()
        self._qk_norms = None if weights.qk_norms is None else weights.qk_norms.numpy()
        self._kinds = np.repeat([0, 1], [arch.num_heads, arch.num_kv_heads])  # query or key
        self._swap = np.roll(np.arange(d), d // 2)
        # The softmax's scale and the norm's 1/D are constants of queries and keys: they go here.
        scale = np.array([[d**-0.5], [1.0]], dtype=np.float32)
        scale *= math.sqrt(d) if arch.qk_norm else 1.0
        self._cos, self._sin = (table.numpy()[:, None] * scale for table in (cos, sin))

        kv = cache.kv.flatten(2, 3)  # (L, 2, B · Hkv, S, D)
        self._keys, self._values = kv[:, 0].transpose(2, 3), kv[:, 1]
        self._cache = cache.kv.numpy()  # (L, 2, B, Hkv, S, D)

        self.x, self._x_array = _buffer(batch, arch.hidden_size)
        self._normed, self._normed_array = _buffer(batch, arch.hidden_size)
        self._qkv, self._qkv_array = _buffer(batch, (heads + arch.num_kv_heads) * d)
        qkv = self._qkv_array.reshape(batch, -1, d)
        self._qk, self._v = qkv[:, :heads], qkv[:, heads:]
        rotated, self._rotated = _buffer(batch, heads, d)
        self._crossed = np.empty_like(self._rotated)
        self._k = self._rotated[:, arch.num_heads :]  # (B, Hkv, D)
        # One row's queries lie in a piece and are read in place, those of more are copied.
        shape = (batch * arch.num_kv_heads, -1, d)
        queries = rotated[:, : arch.num_heads]
        self._q = queries.view(shape) if batch == 1 else torch.empty_like(queries).view(shape)
        self._queries = self._rotated[:, : arch.num_heads] if batch > 1 else None
        self._attended = torch.empty_like(self._q)
        self._attended_rows = self._attended.view(batch, -1)
        self._gate_up, self._gate_up_array = _buffer(batch, 2 * arch.intermediate_size)
        self._gate, self._up = self._gate_up.chunk(2, 1)
        self._acted = torch.empty(batch, arch.intermediate_size)
        self._logits = torch.empty(batch, arch.vocab_size)

    def __call__(self, tokens: Tensor, position: int) -> Tensor:
        """Runs tokens (B,) at a position; returns logits (B, V)."""
        x, normed, eps = self._x_array, self._normed_array, self._eps
        np.take(self._embedding, tokens.numpy(), axis=0, out=x)
        cos, sin = self._rotation(position)
        slots = self._cache[:, :, :, :, position]  # (L, 2, B, Hkv, D)
        keys = self._keys.narrow(3, 0, position + 1).unbind(0)  # each (B · Hkv, D, T)
        values = self._values.narrow(2, 0, position + 1).unbind(0)  # each (B · Hkv, T, D)
        for index, layer in enumerate(self._layers):
            _rms_norm(x, layer.input_norm, eps, normed)
            torch.mm(self._normed, layer.qkv, out=self._qkv)
            if layer.qkv_bias is not None:
                self._qkv_array += layer.qkv_bias
            self._rotate(cos[index], sin[index])
            slots[index, 0] = self._k
            slots[index, 1] = self._v
            scores = torch.bmm(self._q, keys[index])  # (B · Hkv, G, T)
            torch.bmm(scores.softmax(-1), values[index], out=self._attended)
            self.x.addmm_(self._attended_rows, layer.o)
            if layer.o_bias is not None:
                x += layer.o_bias
            _rms_norm(x, layer.post_norm, eps, normed)
            torch.mm(self._normed, layer.gate_up, out=self._gate_up)
            if layer.gate_up_bias is not None:
                self._gate_up_array += layer.gate_up_bias
            torch.mul(F.silu(self._gate), self._up, out=self._acted)
            self.x.addmm_(self._acted, layer.down)
            if layer.down_bias is not None:
                x += layer.down_bias
        _rms_norm(x, self._norm, eps, normed)
        return torch.mm(self._normed, self._head, out=self._logits)

    def _rotation(self, position: int):
        """cos and sin of every layer, each (N, D), times the weights of query and key norms."""
        cos, sin = self._cos[position], self._sin[position]  # (2, D)
        if self._qk_norms is None:
            layers = len(self._layers)
            return [cos[self._kinds]] * layers, [sin[self._kinds]] * layers
        weights = self._qk_norms  # (L, 2, D)
        crossed = np.take(weights, self._swap, axis=2)
        return (weights * cos)[:, self._kinds], (crossed * sin)[:, self._kinds]

    def _rotate(self, cos: np.ndarray, sin: np.ndarray) -> None:
        """Norms and rotates the queries and keys of the `_qkv` buffer into `_rotated`."""
        qk, rotated, crossed = self._qk, self._rotated, self._crossed
        np.multiply(qk, cos, out=rotated)
        np.take(qk, self._swap, axis=2, out=crossed, mode="clip")
        np.multiply(crossed, sin, out=crossed)
        np.add(rotated, crossed, out=rotated)
        if self._qk_norms is not None:  # the norm is one number a head, so it may come last
            square = np.vecdot(qk, qk)
            square += qk.shape[2] * self._eps
            np.sqrt(square, out=square)
            np.divide(rotated, square[:, :, None], out=rotated)
        if self._queries is not None:
            self._q.numpy()[...] = self._queries.reshape(self._q.shape)


class _HostLayer:
    """A packed layer as this step reads it: matrices transposed, vectors as arrays."""

    def __init__(self, layer: PackedLayer):
        self.qkv, self.o = layer.qkv.t(), layer.o.t()
        self.gate_up, self.down = layer.gate_up.t(), layer.down.t()
        self.input_norm, self.post_norm = layer.input_norm.numpy(), layer.post_norm.numpy()
        for name in ("qkv_bias", "o_bias", "gate_up_bias", "down_bias"):
            bias = getattr(layer, name)
            setattr(self, name, None if bias is None else bias.numpy())


def _buffer(*shape: int) -> tuple[Tensor, np.ndarray]:
    """The same memory as a tensor and as an array."""
    tensor = torch.empty(shape)
    return tensor, tensor.numpy()


def _rms_norm(x: np.ndarray, weight: np.ndarray, eps: float, out: np.ndarray) -> None:
    """x / sqrt(mean(x²) + eps) · weight over the last of two dimensions."""
    np.multiply(x, weight, out=out)
    if len(x) == 1:  # a number instead of arrays of one
        scale = 1 / math.sqrt(float(np.vdot(x, x)) / x.shape[1] + eps)
    else:
        scale = (1 / np.sqrt(np.vecdot(x, x) / x.shape[1] + eps))[:, None]
    np.multiply(out, scale, out=out)
