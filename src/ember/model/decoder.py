"""The decoder: one transformer for every architecture, readable from top to bottom.

Contract. `Decoder` computes what Hugging Face's model of the same `Architecture` computes (equal
logits and caches in float32). It runs any range of layers, from tokens or from hidden states, at
any positions, with or without a cache. It holds weights and nothing else: no cache, no generation,
no tokenizer. Without a cache it can be trained through.

Shapes: B batch, T tokens of this call, S tokens already cached, H hidden size, Hq and Hkv query and
KV heads, D head dimension, V vocabulary.
"""

import math
from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ember.model.architecture import Architecture

TWO_PARTS_PAY = 4 << 20  # queries x keys from which two attentions beat one on CUDA (H200)

Tap = Callable[[int, str, Tensor], None]
"""Called as tap(layer, name, tensor) while a forward runs, in this order:

layer_input (B, T, H) · attn_in (B, T, H), normed · k_raw and v (B, T, Hkv, D), keys before norm and
rotation · attn_out (B, T, H), after o_proj · attn_residual (B, T, H) · mlp_in (B, T, H), normed ·
mlp_out (B, T, H). The next layer's input is attn_residual + mlp_out.
"""


class KVCache(Protocol):
    """Where a forward leaves its keys and values and finds those of earlier tokens."""

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores k (rotated) and v, (B, Hkv, T, D); returns all, (B, Hkv, S + T, D)."""

    def length(self, layer: int) -> int:
        """S: tokens stored so far in this layer."""


class Decoder(nn.Module):
    """Embedding, layers, final norm and head; see `forward` and `logits`."""

    def __init__(self, arch: Architecture):
        super().__init__()
        self.arch = arch
        self.embed_tokens = nn.Embedding(arch.vocab_size, arch.hidden_size)
        self.layers = nn.ModuleList(Layer(arch) for _ in range(arch.num_layers))
        self.norm = RMSNorm(arch.hidden_size, arch.norm_eps)
        self.lm_head = (
            None
            if arch.tie_embeddings
            else nn.Linear(arch.hidden_size, arch.vocab_size, bias=False)
        )

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) to hidden states (B, T, H)."""
        return self.embed_tokens(tokens)

    def forward(
        self,
        tokens: Tensor | None = None,
        *,
        hidden: Tensor | None = None,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
        layers: range | None = None,
        tap: Tap | None = None,
        last: int | None = None,
    ) -> Tensor:
        """Runs `layers` (all by default) and returns the last one's output (B, T, H), not normed.

        Starts from `tokens` (B, T) or from `hidden` (B, T, H), the input of the first layer run.
        `positions` (T,) or (B, T) rotate queries and keys; by default they follow the tokens that
        the first layer run has in the cache. Each token attends to all that is cached and to the
        tokens of this call up to itself.

        With `last` only that many tokens' outputs are wanted, (B, last, H): the last layer then
        computes keys and values of all tokens, but attention and MLP of those alone.
        """
        if (tokens is None) == (hidden is None):
            raise ValueError("give either tokens or hidden, and not both")
        x = self.embed(tokens) if hidden is None else hidden  # (B, T, H)
        layers = range(self.arch.num_layers) if layers is None else layers
        if positions is None:
            start = cache.length(layers[0]) if cache is not None and len(layers) else 0
            positions = torch.arange(start, start + x.shape[1], device=x.device)
        rotation = rotary_tables(self.arch, positions, x.dtype)
        for index in layers:
            wanted = last if last is not None and index == layers[-1] else x.shape[1]
            x = self.layers[index](x, rotation, index, cache, tap, wanted)
        return x if last is None else x[:, -last:]

    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and head: hidden states (B, T, H) to logits (B, T, V)."""
        head = self.embed_tokens if self.lm_head is None else self.lm_head
        return F.linear(self.norm(hidden), head.weight)


class Layer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, arch: Architecture):
        super().__init__()
        self.input_layernorm = RMSNorm(arch.hidden_size, arch.norm_eps)
        self.self_attn = Attention(arch)
        self.post_attention_layernorm = RMSNorm(arch.hidden_size, arch.norm_eps)
        self.mlp = MLP(arch)

    def forward(
        self, x: Tensor, rotation, index: int, cache: KVCache | None, tap: Tap | None, last: int
    ) -> Tensor:
        tap = tap or _no_tap
        tap(index, "layer_input", x)
        normed = self.input_layernorm(x)
        tap(index, "attn_in", normed)
        attended = self.self_attn(normed, rotation, index, cache, tap, last)  # (B, last, H)
        tap(index, "attn_out", attended)
        x = x[:, -last:] + attended
        tap(index, "attn_residual", x)
        normed = self.post_attention_layernorm(x)
        tap(index, "mlp_in", normed)
        fed = self.mlp(normed)
        tap(index, "mlp_out", fed)
        return x + fed


class Attention(nn.Module):
    """Rotary grouped-query attention, with optional norms over each query and key head."""

    def __init__(self, arch: Architecture):
        super().__init__()
        h, d = arch.hidden_size, arch.head_dim
        self.head_dim = d
        self.q_proj = nn.Linear(h, arch.num_heads * d, bias=arch.qkv_bias)
        self.k_proj = nn.Linear(h, arch.num_kv_heads * d, bias=arch.qkv_bias)
        self.v_proj = nn.Linear(h, arch.num_kv_heads * d, bias=arch.qkv_bias)
        self.o_proj = nn.Linear(arch.num_heads * d, h, bias=arch.o_bias)
        self.q_norm = RMSNorm(d, arch.norm_eps) if arch.qk_norm else None
        self.k_norm = RMSNorm(d, arch.norm_eps) if arch.qk_norm else None

    def forward(
        self, x: Tensor, rotation, index: int, cache: KVCache | None, tap: Tap, last: int
    ) -> Tensor:
        q = self.q_proj(x[:, -last:]).unflatten(-1, (-1, self.head_dim))  # (B, last, Hq, D)
        k = self.k_proj(x).unflatten(-1, (-1, self.head_dim))  # (B, T, Hkv, D)
        v = self.v_proj(x).unflatten(-1, (-1, self.head_dim))  # (B, T, Hkv, D)
        tap(index, "k_raw", k)
        tap(index, "v", v)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q = rotate(q, *(table[:, -last:] for table in rotation)).transpose(1, 2)  # (B, Hq, last, D)
        k = rotate(k, *rotation).transpose(1, 2)  # (B, Hkv, T, D)
        v = v.transpose(1, 2)
        if cache is not None:
            k, v = cache.append(index, k, v)  # (B, Hkv, S + T, D)
        return self.o_proj(attend(q, k, v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """down(silu(gate(x)) · up(x))."""

    def __init__(self, arch: Architecture):
        super().__init__()
        h, i = arch.hidden_size, arch.intermediate_size
        self.gate_proj = nn.Linear(h, i, bias=arch.mlp_bias)
        self.up_proj = nn.Linear(h, i, bias=arch.mlp_bias)
        self.down_proj = nn.Linear(i, h, bias=arch.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight over the last dimension, in float32 inside the kernel."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def rotary_tables(arch: Architecture, positions: Tensor, dtype: torch.dtype):
    """cos and sin of positions (T,) or (B, T): (1 or B, T, 1, D/2), computed in float32."""
    angles = positions[..., None].float() * rotary_frequencies(arch, positions.device)
    if positions.ndim == 1:
        angles = angles[None]
    angles = angles.unsqueeze(-2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotary_frequencies(arch: Architecture, device: torch.device) -> Tensor:
    """Angle per position of each rotated pair of dimensions, (D/2,) in float32."""
    exponents = torch.arange(0, arch.head_dim, 2, device=device).float() / arch.head_dim
    frequencies = 1.0 / arch.rope_theta**exponents
    if (scaling := arch.rope_scaling) is None:
        return frequencies
    # Llama 3: wavelengths beyond the original context are stretched by `factor`, short ones kept,
    # those between interpolated.
    wavelengths = 2 * math.pi / frequencies
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = (scaling.original_max_positions / wavelengths - low) / (high - low)
    return torch.lerp(frequencies / scaling.factor, frequencies, kept.clamp(0, 1))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x (B, T, heads, D); dimension i pairs with i + D/2."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of the last T tokens: q (B, Hq, T, D), k and v (B, Hkv, S + T, D).

    Query head h reads KV head h // (Hq / Hkv). Query t sees the keys 0 … S + t. Returns
    (B, Hq, T, D).
    """
    tokens, past = q.shape[2], k.shape[2] - q.shape[2]
    grouped = q.shape[1] != k.shape[1]
    if tokens == 1:
        # One query sees every key, so the queries of a KV head are just more rows of it.
        folded = q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])  # (B, Hkv, Hq/Hkv, D)
        return F.scaled_dot_product_attention(folded, k, v).reshape(q.shape)
    if q.requires_grad and not q.is_cuda:  # the CPU's grouped kernel has no fast backward
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        grouped = False
    if not past:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    if q.is_cuda and not (tokens * k.shape[2] >= TWO_PARTS_PAY and _cudnn_attends(q, k, v)):
        from torch.nn.attention.bias import causal_lower_right  # seconds to import: only if used

        bias = causal_lower_right(tokens, past + tokens)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=grouped)
    if q.requires_grad:
        mask = torch.ones(tokens, past + tokens, dtype=torch.bool).tril(past)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return _attend_in_two(q, k, v, past)


def _attend_in_two(q: Tensor, k: Tensor, v: Tensor, past: int) -> Tensor:
    """The past without a mask, the new tokens causally, merged by log-sum-exp.

    On the CPU a mask over the T x (S + T) rectangle would cost its whole area, and the kernel's own
    causal form aligns the mask to the wrong corner. So does cuDNN's, of which two calls still take
    0.6 of the time of the kernel that aligns it to the right one (H200, T = S = 2048).
    """
    # out (B, Hq, T, D), lse (B, Hq, T, 1)
    old, old_lse = _attention_with_lse(q, k[:, :, :past], v[:, :, :past], causal=False)
    new, new_lse = _attention_with_lse(q, k[:, :, past:], v[:, :, past:], causal=True)
    # Shares of the softmax mass. Both, because 1 - share is 0 in bfloat16 where a token's own key
    # has a thousandth of it, times a value that may be the largest.
    on_old = torch.sigmoid(old_lse - new_lse).to(q.dtype)
    on_new = torch.sigmoid(new_lse - old_lse).to(q.dtype)
    return torch.addcmul(old * on_old, new, on_new)


def _attention_with_lse(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> tuple[Tensor, Tensor]:
    if q.is_cuda:
        cudnn = torch.ops.aten._scaled_dot_product_cudnn_attention
        return cudnn(q, k, v, None, True, 0.0, causal)[:2]
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = flash(q, k, v, is_causal=causal)
    return out, lse.unsqueeze(-1)


def _cudnn_attends(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether cuDNN's kernels take these tensors (format, head dimension, compute capability)."""
    if q.requires_grad:
        return False
    params = torch.backends.cuda.SDPAParams(q, k, v, None, 0.0, False, q.shape[1] != k.shape[1])
    return torch.backends.cuda.can_use_cudnn_attention(params)


def _no_tap(layer: int, name: str, tensor: Tensor) -> None:
    """The default tap: looks at nothing."""
