"""One decoding step, fast: the decoder's arithmetic with few, large, preallocated operations.

Contract. `DecodeStep(decoder, cache)(tokens)` gives the logits of the next position for every row,
equal to the eager decoder's (1e-4 in float32), and leaves the tokens' keys and values in the cache.
Query, key and value weights lie in one block, gate and up weights in another; the decoder's own
parameters become views of the blocks, so in-place changes of weights show at once. On CUDA the step
is one captured graph: the position lives on the device, and attention reads the whole static cache
under a mask, so that nothing depends on the host.

Shapes: B rows, H hidden, Hq and Hkv heads, D head dimension, I intermediate, S capacity.
"""

import logging
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ember.cache.contiguous import ContiguousCache
from ember.model.decoder import Decoder, rotary_tables

log = logging.getLogger(__name__)

SPLIT = 256  # cached tokens that one block of the CUDA attention reads
MASKED = -30000.0  # finite, so that a part that is masked throughout is no NaN; fits bfloat16


class DecodeStep:
    """A step for one decoder and one cache, whose batch and memory it keeps.

    The logits returned are overwritten by the next call.
    """

    def __init__(self, decoder: Decoder, cache: ContiguousCache, *, graph: bool | None = None):
        """`graph`: capture a CUDA graph (by default on CUDA); without, the same operations run
        eagerly."""
        arch = decoder.arch
        self._decoder, self._cache, self._arch = decoder, cache, arch
        self._layers = [_PackedLayer(layer) for layer in decoder.layers]
        device, dtype = cache.kv.device, cache.kv.dtype
        self._on_cuda = device.type == "cuda"
        self._qk_heads = arch.num_heads + arch.num_kv_heads
        self._all_heads = self._qk_heads + arch.num_kv_heads
        half = arch.head_dim // 2
        # Of every head the other half's dimension, whose sine term it takes.
        self._swap = torch.arange(arch.head_dim, device=device).roll(half)
        self._cos, self._sin = _signed_tables(decoder, cache.capacity, dtype, device)
        self._norms = _pack_qk_norms(decoder) if arch.qk_norm else None  # (L, 2, D)
        self._weights = _addresses(decoder)  # where packing has put them
        kinds = [0] * arch.num_heads + [1] * arch.num_kv_heads
        self._kinds = torch.tensor(kinds, device=device)
        self._head = (decoder.embed_tokens if arch.tie_embeddings else decoder.lm_head).weight
        self._position = torch.zeros(1, dtype=torch.long, device=device)
        self._tokens = torch.zeros(cache.batch, dtype=torch.long, device=device)
        self._eps = torch.tensor(arch.norm_eps, dtype=dtype, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits: Tensor | None = None
        self.threads = torch.get_num_threads()
        if self._on_cuda and cache.capacity % SPLIT:
            raise ValueError(f"on CUDA the cache's capacity must be a multiple of {SPLIT}")
        with torch.inference_mode():
            first = cache.kv[..., :1, :].clone()  # trial steps write at position 0
            if not self._on_cuda:
                self.threads = self._fastest_threads()
            elif graph is not False:
                self._capture()
            cache.kv[..., :1, :] = first

    @torch.inference_mode()
    def __call__(self, tokens: Tensor) -> Tensor:
        """Runs tokens (B,) at the cache's next position; returns logits (B, V)."""
        position = self._cache.length(0)
        self._cache.advance(1)
        if not self._on_cuda:
            return self._run(tokens, position)
        self._position.fill_(position)
        if self._graph is None:
            return self._run(tokens, None)
        self._tokens.copy_(tokens)
        self._graph.replay()
        return self._logits

    def is_current(self) -> bool:
        """Whether the decoder's parameters still lie where this step reads them."""
        return self._weights == _addresses(self._decoder)

    def _run(self, tokens: Tensor, position: int | None) -> Tensor:
        """The step at a position of the host's, or (None) at the one on the device."""
        arch, eps = self._arch, self._arch.norm_eps
        cos, sin, keys_values, slots, bias = self._at(position)
        x = self._decoder.embed_tokens.weight.index_select(0, tokens)  # (B, H)
        batch = x.shape[0]
        for index, layer in enumerate(self._layers):
            normed = self._normalise(x, eps).mul_(layer.input_norm)
            qkv = F.linear(normed, layer.qkv, layer.qkv_bias)
            qkv = qkv.view(batch, self._all_heads, arch.head_dim)
            rotated = qk = qkv[:, : self._qk_heads]  # (B, Hq + Hkv, D)
            if arch.qk_norm:
                qk = self._normalise(qk, eps)
            crossed = torch.index_select(qk, 2, self._swap)
            # Written back beside v, so that one copy moves k and v.
            torch.addcmul(qk * cos[index], crossed, sin[index], out=rotated)
            q = qkv[:, : arch.num_heads].unflatten(1, (arch.num_kv_heads, -1))
            kv = qkv[:, arch.num_heads :].unflatten(1, (2, -1)).transpose(0, 1)  # (2, B, Hkv, D)
            if position is None:
                slots[index].index_copy_(3, self._position, kv.unsqueeze(3))
                attended = attend_masked(q, *keys_values[index], bias)
            else:
                slots[index].copy_(kv)
                attended = F.scaled_dot_product_attention(q, *keys_values[index])
            x = _add_linear(x, attended.reshape(batch, -1), layer.o, layer.o_bias)
            normed = self._normalise(x, eps).mul_(layer.post_norm)
            gate, up = F.linear(normed, layer.gate_up, layer.gate_up_bias).chunk(2, -1)
            x = _add_linear(x, F.silu(gate).mul_(up), layer.down, layer.down_bias)
        return F.linear(self._normalise(x, eps).mul_(self._decoder.norm.weight), self._head)

    def _at(self, position: int | None):
        """What depends on the position, for all layers at once.

        cos and sin (L or 1-like list of (Hq + Hkv, D)) hold the weights of the query and key norms;
        keys_values are pairs of (B, Hkv, length, D), slots where the new ones go, bias the mask.
        """
        kv = self._cache.kv
        if position is None:
            cos, sin = (x.index_select(0, self._position)[0] for x in (self._cos, self._sin))
            slots = kv.unbind(0)
            keys_values = [layer.unbind(0) for layer in slots]
            beyond = torch.arange(kv.shape[4], device=kv.device) > self._position
            bias = beyond.to(kv.dtype) * MASKED
        else:
            cos, sin = self._cos[position], self._sin[position]
            slots = kv[:, :, :, :, position].unbind(0)
            read = kv[:, :, :, :, : position + 1].flatten(0, 1).unbind(0)
            keys_values = list(zip(read[::2], read[1::2], strict=True))
            bias = None
        if self._norms is None:
            return [cos] * len(slots), [sin] * len(slots), keys_values, slots, bias
        weights = self._norms  # rotate(w · x) = (w · cos) · x + (crossed w · sin) · crossed x
        cos = (weights * cos).index_select(1, self._kinds).unbind(0)
        sin = (weights.index_select(2, self._swap) * sin).index_select(1, self._kinds).unbind(0)
        return cos, sin, keys_values, slots, bias

    def _normalise(self, x: Tensor, eps: float) -> Tensor:
        """x / sqrt(mean(x²) + eps) over the last dimension, a new tensor."""
        if self._on_cuda:
            return F.rms_norm(x, x.shape[-1:], None, eps)
        # On the CPU rms_norm is six operations of the dispatcher; these are four.
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x * torch.addcmul(self._eps, norm, norm, value=1 / x.shape[-1]).rsqrt_()

    def _fastest_threads(self) -> int:
        """1 or torch's number of threads, whichever steps faster now.

        Small matrices gain little from a second core and lose much when it is busy.
        """
        best = {}
        with restored_threads():
            for threads in {1, torch.get_num_threads()}:
                torch.set_num_threads(threads)
                times = []
                for _ in range(4):
                    began = time.perf_counter()
                    self._run(self._tokens, 0)
                    times.append(time.perf_counter() - began)
                best[threads] = sorted(times)[1]
        log.debug("decoding with %s threads, measured %s", min(best, key=best.get), best)
        return min(best, key=best.get)

    def _capture(self) -> None:
        """Record the step once; `_position` and `_tokens` are its inputs, `_logits` its output."""
        stream = torch.cuda.Stream(self._cache.kv.device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries allocate their workspaces before the capture
            for _ in range(2):
                self._run(self._tokens, None)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._logits = self._run(self._tokens, None)
        self._graph = graph


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


class restored_threads:
    """A block after which torch has as many threads as before."""

    def __enter__(self):
        self._before = torch.get_num_threads()

    def __exit__(self, *_):
        if torch.get_num_threads() != self._before:
            torch.set_num_threads(self._before)


class _PackedLayer:
    """The weights of one layer as the step reads them: all of them shared with the module."""

    def __init__(self, layer: nn.Module):
        attention, mlp = layer.self_attn, layer.mlp
        self.input_norm = layer.input_layernorm.weight
        self.post_norm = layer.post_attention_layernorm.weight
        qkv = [attention.q_proj, attention.k_proj, attention.v_proj]
        self.qkv, self.qkv_bias = _pack_linears(qkv)
        self.o, self.o_bias = _pack_linears([attention.o_proj])
        self.gate_up, self.gate_up_bias = _pack_linears([mlp.gate_proj, mlp.up_proj])
        self.down, self.down_bias = _pack_linears([mlp.down_proj])


def _pack_linears(linears: list[nn.Module]) -> tuple[Tensor, Tensor | None]:
    """Weights (sum of rows, columns) and biases of linear layers, stacked."""
    for linear in linears:
        if type(linear) is not nn.Linear:
            raise TypeError(
                f"the decoding step cannot pack a {type(linear).__name__}.\n"
                "Merge adapters into the weights first, or decode with the Decoder itself."
            )
    bias = linears[0].bias is not None
    return (
        pack([linear.weight for linear in linears]),
        pack([linear.bias for linear in linears]) if bias else None,
    )


def pack(parameters: list[nn.Parameter]) -> Tensor:
    """One tensor that stacks the parameters along their first dimension, and of which they are
    views from now on. Nothing moves where they already are."""
    rows = [parameter.shape[0] for parameter in parameters]
    first = parameters[0].detach()
    expected = first.data_ptr()
    for parameter in parameters:
        same = parameter.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not (same and parameter.is_contiguous() and parameter.data_ptr() == expected):
            break
        expected += parameter.numel() * parameter.element_size()
    else:
        return first.as_strided((sum(rows), *first.shape[1:]), first.stride())
    # Outside of inference mode, or the weights could not be trained any more.
    with torch.inference_mode(False), torch.no_grad():
        packed = torch.cat([parameter.detach() for parameter in parameters])
        for parameter, part in zip(parameters, packed.split(rows), strict=True):
            parameter.data = part
    return packed


def _pack_qk_norms(decoder: Decoder) -> Tensor:
    """Weights of the query and key norms of all layers, (L, 2, D), shared with the modules."""
    attentions = [layer.self_attn for layer in decoder.layers]
    packed = pack([norm.weight for a in attentions for norm in (a.q_norm, a.k_norm)])
    return packed.view(len(attentions), 2, -1)


def _signed_tables(decoder: Decoder, positions: int, dtype: torch.dtype, device: torch.device):
    """cos and sin (positions, D) such that rotate(x) = cos · x + sin · (x with halves swapped)."""
    where = torch.arange(positions, device=device)
    cos, sin = (x[0, :, 0] for x in rotary_tables(decoder.arch, where, dtype))
    return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)


def _add_linear(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x + y · weightᵀ (+ bias)."""
    x = torch.addmm(x, y, weight.t())
    return x if bias is None else x.add_(bias)


def _addresses(decoder: Decoder) -> tuple[int, ...]:
    return tuple(parameter.data_ptr() for parameter in decoder.parameters())
