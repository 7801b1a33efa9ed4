"""One decoding step, fast: the decoder's arithmetic with few, large, preallocated operations.

Contract. `DecodeStep(decoder, cache)(tokens)` gives the logits of the next position for every row,
equal to the eager decoder's (1e-4 in float32), and leaves the tokens' KV in the cache. Weights are
packed (`ember.backends.packing`), rotary tables precomputed. On the CPU it is a `NativeStep`,
compiled code, or where that cannot be had and in float32 a `HostStep`; on CUDA a `KernelStep`, in
Triton's kernels, where they cover the case (`ember.backends.select`). Elsewhere it is the
operations below, on CUDA captured as one graph: the position lives on the device, and attention
reads the whole static cache under a mask, so that nothing depends on the host. Architectures that
cannot be packed (`why_unpacked`) decode with the decoder itself, at its speed.

Shapes: B rows, H hidden, Hq and Hkv heads, G = Hq / Hkv, D head dimension, S capacity, L layers.
"""

import logging

import torch
import torch.nn.functional as F
from torch import Tensor

from ember.backends.compiled.native_step import NativeStep
from ember.backends.packing import PackedDecoder, why_unpacked
from ember.backends.select import why_not
from ember.backends.threads import WORTH_THREADS, fastest_threads
from ember.cache.contiguous import ContiguousCache
from ember.engine import native_step
from ember.engine.host_step import HostStep
from ember.model.architecture import Architecture
from ember.model.decoder import Decoder, rotary_tables

log = logging.getLogger(__name__)

SPLIT = 256  # cached tokens that one block of the device's attention reads
MASKED = -30000.0  # finite, so that a part that is masked throughout is no NaN; fits bfloat16


class DecodeStep:
    """A step for one decoder and one cache, whose batch and memory it keeps.

    The logits returned are overwritten by the next call. `threads` is the number of torch's threads
    with which it is fastest; setting it is the caller's choice.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: ContiguousCache,
        *,
        graph: bool | None = None,
        kernels: bool = True,
    ):
        """`graph`: capture a CUDA graph (by default on CUDA); without, the same operations run
        eagerly. `kernels`: use Triton's, on the CPU compiled code, where they cover the case."""
        kv = cache.kv
        self._cache = cache
        self.threads = torch.get_num_threads()
        self.loop = None  # a KernelStep, which can sample as well
        if (reason := why_unpacked(decoder.arch)) is not None:
            log.info("decoding with the decoder itself, not the fast step: %s", reason)
            self._step, self._weights = EagerStep(decoder, cache), None
            return
        self._weights = PackedDecoder(decoder)
        reason = why_not(decoder.arch, kv, cache.batch) if kernels else "the caller asked for them"
        with torch.inference_mode():
            if reason is None:
                from ember.backends.cuda.step import KernelStep  # imports Triton

                self._step = self.loop = KernelStep(decoder.arch, self._weights, kv, cache.capacity)
                if kv.is_cuda and graph is not False:
                    self._step.capture()
                return
            log.debug("decoding with plain operators: %s", reason)
            cos, sin = swapped_tables(decoder.arch, cache.capacity, kv.dtype, kv.device)
            first = kv[..., :1, :].clone()  # trial steps write at position 0
            if kernels and native_step.why_not(decoder.arch, kv) is None:
                self._step = NativeStep(decoder.arch, self._weights, kv, cos, sin)
                self.threads = self._fastest_threads(native_step.WORTH_THREADS)
            elif kv.device.type == "cpu" and kv.dtype == torch.float32:
                self._step = HostStep(decoder.arch, self._weights, cache, cos, sin)
                self.threads = self._fastest_threads()
            else:
                self._step = DeviceStep(decoder.arch, self._weights, cache, cos, sin)
                if kv.is_cuda and graph is not False:
                    self._step.capture()
            kv[..., :1, :] = first

    @torch.inference_mode()
    def __call__(self, tokens: Tensor) -> Tensor:
        """Runs tokens (B,) at the cache's next position; returns logits (B, V)."""
        position = self._cache.length(0)
        self._cache.advance(1)
        return self._step(tokens, position)

    @property
    def weights(self) -> PackedDecoder | None:
        """The decoder's weights as the step reads them; None where it is the decoder itself."""
        return self._weights

    def is_current(self) -> bool:
        """Whether the decoder's parameters still lie where this step reads them."""
        return self._weights is None or self._weights.is_current()

    def _fastest_threads(self, worth: float = WORTH_THREADS) -> int:
        tokens = torch.zeros(self._cache.batch, dtype=torch.long)
        return fastest_threads(lambda: self._step(tokens, 0), worth)


class EagerStep:
    """The step as the decoder itself computes it, for architectures that cannot be packed."""

    def __init__(self, decoder: Decoder, cache: ContiguousCache):
        self._decoder, self._cache = decoder, cache

    def __call__(self, tokens: Tensor, position: int) -> Tensor:
        """Runs tokens (B,) at a position, which the cache counts already; logits (B, V)."""
        self._cache.truncate(position)
        return self._decoder.logits(self._decoder(tokens[:, None], cache=self._cache))[:, 0]


class DeviceStep:
    """The step as torch operations without any shape or value from the host."""

    def __init__(
        self,
        arch: Architecture,
        weights: PackedDecoder,
        cache: ContiguousCache,
        cos: Tensor,
        sin: Tensor,
    ):
        """`cos` and `sin` (S, D): rotate(x) = cos · x + sin · (x with halves swapped)."""
        device = cache.kv.device
        if cache.capacity % SPLIT:
            raise ValueError(f"here the cache's capacity must be a multiple of {SPLIT}")
        self._arch, self._weights, self._kv = arch, weights, cache.kv
        self._cos, self._sin = cos, sin
        # Of every dimension the one in the other half, whose sine term it takes.
        self._swap = torch.arange(arch.head_dim, device=device).roll(arch.head_dim // 2)
        kinds = [0] * arch.num_heads + [1] * arch.num_kv_heads
        self._kinds = torch.tensor(kinds, device=device)
        self._places = torch.arange(cache.capacity, device=device)
        self._position = torch.zeros(1, dtype=torch.long, device=device)
        self._tokens = torch.zeros(cache.batch, dtype=torch.long, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits: Tensor | None = None

    def __call__(self, tokens: Tensor, position: int) -> Tensor:
        """Runs tokens (B,) at a position; returns logits (B, V)."""
        self._position.fill_(position)
        self._tokens.copy_(tokens)
        if self._graph is None:
            return self._run()
        self._graph.replay()
        return self._logits

    def capture(self) -> None:
        """Records the step once; `_position` and `_tokens` are its inputs, `_logits` its output."""
        stream = torch.cuda.Stream(self._kv.device)
        stream.wait_stream(torch.cuda.current_stream(self._kv.device))
        with torch.cuda.stream(stream):  # libraries allocate their workspaces before the capture
            for _ in range(2):
                self._run()
        torch.cuda.current_stream(self._kv.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._logits = self._run()
        self._graph = graph

    def _run(self) -> Tensor:
        arch, weights = self._arch, self._weights
        cos, sin = self._rotation()
        bias = (self._places > self._position).to(self._kv.dtype) * MASKED  # (S,)
        x = weights.embedding.index_select(0, self._tokens)  # (B, H)
        for index, layer in enumerate(weights.layers):
            normed = F.rms_norm(x, x.shape[-1:], layer.input_norm, arch.norm_eps)
            qkv = F.linear(normed, layer.qkv, layer.qkv_bias).unflatten(1, (-1, arch.head_dim))
            q = self._rotate(qkv, cos[index], sin[index])
            kv = qkv[:, arch.num_heads :].unflatten(1, (2, -1)).transpose(0, 1)  # (2, B, Hkv, D)
            self._kv[index].index_copy_(3, self._position, kv.unsqueeze(3))
            attended = attend_masked(q, self._kv[index, 0], self._kv[index, 1], bias)
            x = _add_linear(x, attended.flatten(1), layer.o, layer.o_bias)
            normed = F.rms_norm(x, x.shape[-1:], layer.post_norm, arch.norm_eps)
            gate, up = F.linear(normed, layer.gate_up, layer.gate_up_bias).chunk(2, -1)
            x = _add_linear(x, F.silu(gate).mul_(up), layer.down, layer.down_bias)
        return F.linear(F.rms_norm(x, x.shape[-1:], weights.norm, arch.norm_eps), weights.head)

    def _rotation(self) -> tuple[list[Tensor], list[Tensor]]:
        """cos and sin of every layer, (Hq + Hkv or 1, D), times the query and key norms."""
        cos = self._cos.index_select(0, self._position)  # (1, D)
        sin = self._sin.index_select(0, self._position)
        weights = self._weights.qk_norms  # (L, 2, D)
        if weights is None:
            layers = self._arch.num_layers
            return [cos] * layers, [sin] * layers
        crossed = weights.index_select(2, self._swap)
        return (
            list((weights * cos).index_select(1, self._kinds).unbind(0)),
            list((crossed * sin).index_select(1, self._kinds).unbind(0)),
        )

    def _rotate(self, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Norms and rotates queries and keys of qkv (B, Hq + 2 Hkv, D) in place, so that k and v
        lie side by side; returns the queries (B, Hkv, G, D)."""
        arch = self._arch
        rotated = qk = qkv[:, : arch.num_heads + arch.num_kv_heads]
        if arch.qk_norm:
            qk = F.rms_norm(qk, qk.shape[-1:], None, arch.norm_eps)
        crossed = qk.index_select(2, self._swap)
        torch.addcmul(qk * cos, crossed, sin, out=rotated)
        return qkv[:, : arch.num_heads].unflatten(1, (arch.num_kv_heads, -1))


def attend_masked(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """One query a row over a whole static cache: q (B, Hkv, G, D), k and v (B, Hkv, S, D).

    `bias` (S,) is 0 where a token may be seen and MASKED elsewhere; token 0 is always seen. The
    cache is read in parts of SPLIT tokens, each by blocks of its own, and the parts are merged by
    log-sum-exp: one block for each KV head would leave most of a GPU idle.
    """
    batch, heads, group, dim = q.shape
    parts = k.shape[2] // SPLIT
    shape = (batch * heads, parts, SPLIT, dim)
    q = q.reshape(batch * heads, 1, group, dim).expand(-1, parts, -1, -1)
    bias = bias.view(1, parts, 1, SPLIT).expand(batch * heads, -1, group, -1)
    out, lse = _attention_with_lse(q, k.reshape(shape), v.reshape(shape), bias)
    share = lse.softmax(1).to(out.dtype)  # (B · Hkv, parts, G)
    return torch.einsum("npg,npgd->ngd", share, out).view(batch, heads, group, dim)


def _attention_with_lse(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Attention (N, P, G, D) and its log-sum-exp (N, P, G) in float32."""
    if q.is_cuda:
        op = torch.ops.aten._scaled_dot_product_efficient_attention
        out, lse, _, _ = op(q, k, v, bias, True)
        return out, lse[..., : q.shape[2]]  # the kernel pads the log-sum-exp
    op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return op(q, k, v, attn_mask=bias)


def swapped_tables(
    arch: Architecture, positions: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """cos and sin (positions, D) such that rotate(x) = cos · x + sin · (x with halves swapped)."""
    where = torch.arange(positions, device=device)
    cos, sin = (x[0, :, 0] for x in rotary_tables(arch, where, dtype))
    return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)


def _add_linear(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x + y · weightᵀ (+ bias)."""
    x = torch.addmm(x, y, weight.t())
    return x if bias is None else x.add_(bias)
