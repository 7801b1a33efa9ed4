"""The decoder: one transformer for every architecture, readable from top to bottom.

Contract. `Decoder` computes what Hugging Face's model of the same `Architecture` computes (equal
logits and caches in float32). It runs any range of layers, from tokens or from hidden states, at
any positions, with or without a cache. It holds weights and nothing else: no cache, no generation,
no tokenizer. Without a cache it can be trained through.

Shapes: B batch, T tokens of this call, S tokens already cached, H hidden size, Hq and Hkv query and
KV heads, D head dimension, R its rotated dimensions, V vocabulary.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ember.model.architecture import Architecture

QUERIES_AT_ONCE = 256  # whose scores `attend_explicitly` holds
TWO_PARTS_PAY = 4 << 20  # queries x keys from which two attentions beat one on CUDA (H200)

Tap = Callable[[int, str, Tensor], None]
"""Called as tap(layer, name, tensor) while a forward runs, in this order:

layer_input (B, T, H) · attn_in (B, T, H), normed · k_raw and v (B, T, Hkv, D), keys before norm and
rotation · attn_out (B, T, H), what attention adds · attn_residual (B, T, H), layer_input +
attn_out · mlp_in (B, T, H), normed · mlp_out (B, T, H), what the MLP adds. The next layer's input
is attn_residual + mlp_out, also where the MLP reads layer_input instead (parallel residual).
"""


class Cache(Protocol):
    """What the decoder asks of a KV cache; `ember.cache.base.KVCache` says what is meant."""

    wants_mass: bool

    def positions(self, count: int, layer: int) -> Tensor: ...

    def update(
        self, layer: int, k: Tensor, v: Tensor, rotation: "KeyRotation", source: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]: ...

    def observe(self, layer: int, mass: Tensor) -> None: ...


class Decoder(nn.Module):
    """Embedding, layers, final norm and head; see `forward` and `logits`."""

    def __init__(self, arch: Architecture):
        super().__init__()
        self.arch = arch
        self.eos_token_ids = arch.eos_token_ids  # a checkpoint may name others
        self.embed_tokens = nn.Embedding(arch.vocab_size, arch.hidden_size)
        self.layers = nn.ModuleList(Layer(arch, index) for index in range(arch.num_layers))
        self.norm = make_norm(arch, arch.hidden_size)
        self.lm_head = (
            None
            if arch.tie_embeddings
            else nn.Linear(arch.hidden_size, arch.vocab_size, bias=False)
        )

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) to hidden states (B, T, H)."""
        x = self.embed_tokens(tokens)
        return x * embedding_scale(self.arch, x.dtype) if self.arch.scaled_embedding else x

    def forward(
        self,
        tokens: Tensor | None = None,
        *,
        hidden: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Cache | None = None,
        layers: range | None = None,
        tap: Tap | None = None,
        last: int | None = None,
    ) -> Tensor:
        """Runs `layers` (all by default) and returns the last one's output (B, T, H), not normed.

        Starts from `tokens` (B, T) or from `hidden` (B, T, H), the input of the first layer run.
        `positions` (T,) or (B, T) rotate queries and keys; by default the cache says where the next
        tokens of the first layer run stand. Each token attends to all that is cached and to the
        tokens of this call up to itself, in sliding layers to the last `sliding_window` of these.

        With `last` only that many tokens' outputs are wanted, (B, last, H): the last layer then
        computes keys and values of all tokens, but attention and MLP of those alone.
        """
        if (tokens is None) == (hidden is None):
            raise ValueError("give either tokens or hidden, and not both")
        x = self.embed(tokens) if hidden is None else hidden  # (B, T, H)
        layers = range(self.arch.num_layers) if layers is None else layers
        if positions is None and cache is not None and len(layers):
            positions = cache.positions(x.shape[1], layers[0])
        elif positions is None:
            positions = torch.arange(x.shape[1], device=x.device)
        rotaries = {
            local: Rotary(self.arch, positions, x.dtype, local)
            for local in {self.arch.rope_is_local(index) for index in layers}
        }
        for index in layers:
            wanted = last if last is not None and index == layers[-1] else x.shape[1]
            rotary = rotaries[self.arch.rope_is_local(index)]
            x = self.layers[index](x, rotary, index, cache, tap, wanted)
        return x if last is None else x[:, -last:]

    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and head: hidden states (B, T, H) to logits (B, T, V)."""
        normed = self.norm(hidden)
        if self.lm_head is None:
            return F.linear(normed, self.embed_tokens.weight)
        return self.lm_head(normed)


class Layer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); both of the same x with a parallel residual.

    With `post_norms` what is added is normed as well.
    """

    def __init__(self, arch: Architecture, index: int):
        super().__init__()
        self.parallel = arch.parallel_residual
        self.input_layernorm = make_norm(arch, arch.hidden_size)
        self.self_attn = Attention(arch, arch.window(index))
        self.attn_out_norm = make_norm(arch, arch.hidden_size) if arch.post_norms else None
        self.post_attention_layernorm = make_norm(arch, arch.hidden_size)
        self.mlp = MLP(arch)
        self.mlp_out_norm = make_norm(arch, arch.hidden_size) if arch.post_norms else None

    def forward(
        self,
        x: Tensor,
        rotary: "Rotary",
        index: int,
        cache: Cache | None,
        tap: Tap | None,
        last: int,
    ) -> Tensor:
        tap = tap or _no_tap
        tap(index, "layer_input", x)
        normed = self.input_layernorm(x)
        tap(index, "attn_in", normed)
        attended = self.self_attn(normed, rotary, index, cache, tap, last)  # (B, last, H)
        if self.attn_out_norm is not None:
            attended = self.attn_out_norm(attended)
        tap(index, "attn_out", attended)
        entered = x[:, -last:]
        x = entered + attended
        tap(index, "attn_residual", x)
        normed = self.post_attention_layernorm(entered if self.parallel else x)
        tap(index, "mlp_in", normed)
        fed = self.mlp(normed)
        if self.mlp_out_norm is not None:
            fed = self.mlp_out_norm(fed)
        tap(index, "mlp_out", fed)
        return x + fed


class Attention(nn.Module):
    """Rotary grouped-query attention, with optional norms over each query and key head."""

    def __init__(self, arch: Architecture, window: int | None):
        super().__init__()
        h, d = arch.hidden_size, arch.head_dim
        self.head_dim = d
        self.q_proj = nn.Linear(h, arch.num_heads * d, bias=arch.qkv_bias)
        self.k_proj = nn.Linear(h, arch.num_kv_heads * d, bias=arch.qkv_bias)
        self.v_proj = nn.Linear(h, arch.num_kv_heads * d, bias=arch.qkv_bias)
        self.o_proj = nn.Linear(arch.num_heads * d, h, bias=arch.o_bias)
        self.q_norm = make_norm(arch, d) if arch.qk_norm else None
        self.k_norm = make_norm(arch, d) if arch.qk_norm else None
        self.window = window
        # `attend` divides scores by sqrt(D); what else they are to be divided by goes to q.
        self.q_factor = None if arch.query_scalar is None else math.sqrt(d / arch.query_scalar)

    def forward(
        self, x: Tensor, rotary: "Rotary", index: int, cache: Cache | None, tap: Tap, last: int
    ) -> Tensor:
        q = self.q_proj(x[:, -last:]).unflatten(-1, (-1, self.head_dim))  # (B, last, Hq, D)
        k = self.k_proj(x).unflatten(-1, (-1, self.head_dim))  # (B, T, Hkv, D)
        v = self.v_proj(x).unflatten(-1, (-1, self.head_dim))  # (B, T, Hkv, D)
        tap(index, "k_raw", k)
        tap(index, "v", v)
        if self.q_norm is not None:
            q = self.q_norm(q)
        if self.q_factor is not None:
            q = q * self.q_factor
        # (B, Hq, last, D)
        q = rotate(q, *(table[:, -last:] for table in rotary.tables)).transpose(1, 2)
        rotation = KeyRotation(self.k_norm, rotary)
        if cache is None:
            attended = self.attend(q, rotation(k), v.transpose(1, 2))
        else:
            k, v, bias = cache.update(index, k, v, rotation, x)  # (B, Hkv, S + T, D)
            if bias is None and not cache.wants_mass:
                attended = self.attend(q, k, v)
            else:
                attended, mass = attend_explicitly(q, k, v, bias, self.window)
                if cache.wants_mass:
                    cache.observe(index, mass)
        return self.o_proj(attended.transpose(1, 2).flatten(2))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of a full or a sliding layer, by the fast kernels."""
        return attend(q, k, v) if self.window is None else attend_near(q, k, v, self.window)


class MLP(nn.Module):
    """down(act(gate(x)) · up(x)), or down(act(up(x))) where there is no gate."""

    def __init__(self, arch: Architecture):
        super().__init__()
        h, i = arch.hidden_size, arch.intermediate_size
        self.gate_proj = nn.Linear(h, i, bias=arch.mlp_bias) if arch.gated_mlp else None
        self.up_proj = nn.Linear(h, i, bias=arch.mlp_bias)
        self.down_proj = nn.Linear(i, h, bias=arch.mlp_bias)
        self.act = ACTIVATION_FUNCTIONS[arch.activation]

    def forward(self, x: Tensor) -> Tensor:
        if self.gate_proj is None:
            return self.down_proj(self.act(self.up_proj(x)))
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


ACTIVATION_FUNCTIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
}


class OffsetRMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x²) + eps) · (1 + weight), rounded once at the end, as Gemma does it."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        weight = 1.0 + self.weight.to(wide)
        return F.rms_norm(x.to(wide), weight.shape, weight, self.eps).to(x.dtype)


def make_norm(arch: Architecture, size: int) -> nn.Module:
    """A norm over the last dimension, of the architecture's kind."""
    kinds = {"rms": nn.RMSNorm, "rms_offset": OffsetRMSNorm, "layer": nn.LayerNorm}
    return kinds[arch.norm](size, arch.norm_eps)


def embedding_scale(arch: Architecture, dtype: torch.dtype) -> float:
    """What embeddings are multiplied by; Gemma rounds it to the weights' format."""
    if not arch.scaled_embedding:
        return 1.0
    return torch.tensor(arch.hidden_size**0.5, dtype=dtype).item()


class Rotary:
    """The rotary tables of one call, for layers of one kind (see `Architecture.rope_is_local`)."""

    def __init__(self, arch: Architecture, positions: Tensor, dtype: torch.dtype, local: bool):
        self.arch, self.positions, self.dtype, self.local = arch, positions, dtype, local
        self.tables = self.at(positions)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin for other positions, as from `rotary_tables`."""
        return rotary_tables(self.arch, positions, self.dtype, local=self.local)


class KeyRotation(NamedTuple):
    """What makes of a layer's projected keys those that attention reads: norm, then rotate."""

    norm: nn.Module | None
    rotary: Rotary

    def __call__(self, k: Tensor) -> Tensor:
        """Keys (B, T, Hkv, D) as projected, for the call's positions: (B, Hkv, T, D)."""
        return rotate(self.normed(k), *self.rotary.tables).transpose(1, 2)

    def normed(self, k: Tensor) -> Tensor:
        """Keys (B, T, Hkv, D), normed where the architecture norms them."""
        return k if self.norm is None else self.norm(k)


def rotary_tables(
    arch: Architecture, positions: Tensor, dtype: torch.dtype, *, local: bool = False
):
    """cos and sin of positions (T,) or (B, T): (1 or B, T, 1, R/2), computed in float32.

    R is `arch.rotary_dim`. `local`: those of layers where `arch.rope_is_local`.
    """
    frequencies = rotary_frequencies(arch, positions.device, local=local)
    angles = positions[..., None].float() * frequencies
    if positions.ndim == 1:
        angles = angles[None]
    angles = angles.unsqueeze(-2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotary_frequencies(arch: Architecture, device: torch.device, *, local: bool = False) -> Tensor:
    """Angle per position of each rotated pair of dimensions, (R/2,) in float32."""
    rotated = arch.rotary_dim
    exponents = torch.arange(0, rotated, 2, device=device).float() / rotated
    if local:
        return 1.0 / arch.rope_local_theta**exponents
    frequencies = 1.0 / arch.rope_theta**exponents
    if (scaling := arch.rope_scaling) is None:
        return frequencies
    if not scaling.is_llama3:
        return frequencies / scaling.factor
    # Llama 3: wavelengths beyond the original context are stretched by `factor`, short ones kept,
    # those between interpolated.
    wavelengths = 2 * math.pi / frequencies
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = (scaling.original_max_positions / wavelengths - low) / (high - low)
    return torch.lerp(frequencies / scaling.factor, frequencies, kept.clamp(0, 1))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of the first R dimensions of x (B, T, heads, D); i pairs with i + R/2."""
    half = cos.shape[-1]
    a, b, kept = x.split((half, half, x.shape[-1] - 2 * half), -1)
    parts = (a * cos - b * sin, b * cos + a * sin)
    return torch.cat(parts if not kept.shape[-1] else (*parts, kept), -1)


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
    learns = any(x.requires_grad for x in (q, k, v))
    if learns and (past or not q.is_cuda):  # grouped, these kernels have no fast backward
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        grouped = False
    if not past:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    if learns:  # a plain mask: under autocast, q and k may be wider than v
        mask = torch.ones(tokens, past + tokens, dtype=torch.bool, device=q.device).tril(past)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    if q.is_cuda and not (tokens * k.shape[2] >= TWO_PARTS_PAY and _cudnn_attends(q, k, v)):
        from torch.nn.attention.bias import causal_lower_right  # seconds to import: only if used

        bias = causal_lower_right(tokens, past + tokens)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=grouped)
    return _attend_in_two(q, k, v, past)


def attend_near(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """As `attend`, but each query sees only the last `window` keys up to its own.

    Runs `window` queries at a time over the fewer than 2 · window keys that they can see, so that
    time and memory grow with the tokens, not with their square.
    """
    past = k.shape[2] - q.shape[2]
    outs = []
    for block in q.split(window, 2):
        stop = past + block.shape[2]
        seen = slice(max(0, past - window + 1), stop)
        near_k, near_v = k[:, :, seen], v[:, :, seen]
        if near_k.shape[2] <= window:  # no key is too old for any of these queries
            outs.append(attend(block, near_k, near_v))
        else:
            outs.append(_attend_banded(block, near_k, near_v, window))
        past = stop
    return outs[0] if len(outs) == 1 else torch.cat(outs, 2)


def _attend_banded(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Attention under a mask of `window` keys up to each query's own."""
    tokens, keys = q.shape[2], k.shape[2]
    if q.shape[1] != k.shape[1]:  # masks and grouped heads together are slow, or refused
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    mask = torch.ones(tokens, keys, dtype=torch.bool, device=q.device)
    mask = mask.tril(keys - tokens).triu(keys - tokens - window + 1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def attend_explicitly(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, window: int | None = None
) -> tuple[Tensor, Tensor]:
    """`attend` (`attend_near` with a `window`), with `bias` added to the scores.

    Returns the output (B, Hq, T, D) and the attention mass (B, Hq, S + T) of each key, summed over
    the queries; `bias` is broadcastable to (B, Hq, T or more, S + T), of which the last T count.
    Scores and mass are in float32 or wider. Some queries at a time, so that memory is bounded.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    keys, tokens = k.shape[2], q.shape[2]
    grouped = (q.shape[0], k.shape[1], -1, q.shape[3])  # queries of a KV head are rows of it
    k, v = k.to(wide), v.to(wide)
    if bias is not None:
        bias = bias[..., -tokens:, :].expand(*bias.shape[:-2], tokens, keys)
    key, outs, mass = torch.arange(keys, device=q.device), [], 0
    for start in range(0, tokens, QUERIES_AT_ONCE):
        block = q[:, :, start : start + QUERIES_AT_ONCE].to(wide)
        stop = start + block.shape[2]
        query = torch.arange(keys - tokens + start, keys - tokens + stop, device=q.device)[:, None]
        unseen = key > query if window is None else (key > query) | (key <= query - window)
        scores = (block.reshape(grouped) @ k.mT).view(*block.shape[:3], keys) / q.shape[3] ** 0.5
        if bias is not None:
            scores = scores + bias[..., start:stop, :]
        shares = scores.masked_fill(unseen, -torch.inf).softmax(-1)  # (B, Hq, block, S + T)
        mass = mass + shares.sum(2)
        rows = shares.reshape(*grouped[:3], keys) @ v
        outs.append(rows.view(block.shape).to(q.dtype))
    return torch.cat(outs, 2), mass


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
    if any(x.requires_grad for x in (q, k, v)):  # the merge by log-sum-exp has no gradient
        return False
    params = torch.backends.cuda.SDPAParams(q, k, v, None, 0.0, False, q.shape[1] != k.shape[1])
    return torch.backends.cuda.can_use_cudnn_attention(params)


def _no_tap(layer: int, name: str, tensor: Tensor) -> None:
    """The default tap: reads nothing."""
