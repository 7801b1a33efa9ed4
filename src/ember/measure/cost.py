"""Bytes and operations that a model's shape asks for: a decoding step, a prefill, a switch.

`arch` is an `ember.model.architecture.Architecture` or whatever has its sizes; an operation is a
multiplication or an addition. Norms, rotation, sampling and activations are left out everywhere:
they are small beside what is counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Operations:
    """Operations of the products with weights, and of attention's scores and weighted sums."""

    matrices: float
    attention: float

    @property
    def total(self) -> float:
        return self.matrices + self.attention


def parameters_read(arch) -> int:
    """Weights that a decoding step reads: of an embedding that is not the head only rows."""
    looked_up = 0 if arch.tie_embeddings else arch.vocab_size * arch.hidden_size
    return arch.parameter_count() - looked_up


def step_tokens(context: int, rows: int, new_tokens: int) -> int:
    """Tokens whose KV an average step reads: the shared prompt's once, half of each row's own."""
    return context + rows * new_tokens // 2


def step_bytes(arch, dtype_bytes: int, tokens: int) -> tuple[int, int]:
    """Bytes of weights, and of the KV of so many tokens, that a decoding step reads.

    Sliding layers count like others: their caches keep what has left the window.
    """
    return parameters_read(arch) * dtype_bytes, tokens * arch.kv_bytes_per_token(dtype_bytes)


def step_operations(arch, rows: int, attended: float) -> Operations:
    """Operations of decoding a token in each of `rows`, that attend to `attended` in all."""
    return Operations(2 * rows * parameters_read(arch), attended * _attention(arch))


def prefill_operations(arch, tokens: int, reused: int = 0) -> Operations:
    """Operations of a causal prefill of `tokens` of which the first `reused` come from a cache.

    The matrices of a layer work once a token, attention for each pair of a query and a key at or
    before it. Of the last layer all tokens need keys and values, but only the last token the rest.
    The head is left out: it is the same with and without reuse.
    """
    query, kv = arch.num_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
    keys_values = 2 * arch.hidden_size * kv
    mlp = (3 if arch.gated_mlp else 2) * arch.intermediate_size
    others = arch.hidden_size * (2 * query + mlp)
    pairs = (tokens * (tokens + 1) - reused * (reused + 1)) / 2
    new, inner = tokens - reused, arch.num_layers - 1
    return Operations(
        matrices=2.0 * (new * (inner * (keys_values + others) + keys_values) + others),
        attention=_attention(arch) / arch.num_layers * (inner * pairs + tokens),
    )


def update_operations(
    arch, passes: Sequence[tuple[int, int, int, int]], frozen_layers: int = 0
) -> Operations:
    """Operations of a forward and its backward through adapters, weights frozen, under activation
    checkpointing.

    passes: (rows, tokens of each, tokens before them in the cache, outputs of each wanted of the
    last layer). A layer from `frozen_layers` on runs forward twice and backward once, which asks
    for inputs' gradients only and is as long (for attention twice as long); a frozen one runs
    forward once. Of the head forward and backward of the wanted outputs. Adapters are left out.
    """
    query, kv = arch.num_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
    keys_values = 2 * arch.hidden_size * kv
    mlp = (3 if arch.gated_mlp else 2) * arch.intermediate_size
    others = arch.hidden_size * (2 * query + mlp)
    each_pair = _attention(arch) / arch.num_layers
    learnt = arch.num_layers - frozen_layers
    matrices = attention = 0.0
    for rows, tokens, before, wanted in passes:
        inner = rows * tokens * (keys_values + others)
        final = rows * (tokens * keys_values + wanted * others)
        pairs = rows * (tokens * before + tokens * (tokens + 1) / 2)
        last = rows * wanted * (before + tokens - (wanted - 1) / 2)
        matrices += 2 * (inner * (frozen_layers + 3 * (learnt - 1)) + 3 * final)
        attention += each_pair * (pairs * (frozen_layers + 4 * (learnt - 1)) + 4 * last)
    rows, _, _, wanted = passes[-1]  # whose outputs are those of the completions
    return Operations(matrices + 4 * rows * wanted * arch.vocab_size * arch.hidden_size, attention)


def switch_bytes(adapted_bytes: int) -> int:
    """Bytes of switching an adapter in place: every adapted weight is read and written once."""
    return 2 * adapted_bytes


def read_ms(bytes_: float, gb_s: float) -> float:
    """Milliseconds that so many bytes take at so many GB/s (1e9 bytes)."""
    return bytes_ / gb_s / 1e6


def roofline_ms(bytes_: float, operations: float, gb_s: float, tflops: float) -> float:
    """Milliseconds of the longer: of reading the bytes, and of the operations at TFLOP/s."""
    return max(read_ms(bytes_, gb_s), operations / tflops / 1e9)


def _attention(arch) -> int:
    """Operations of one query and one key: product and weighted sum, of all heads and layers."""
    return 4 * arch.num_layers * arch.num_heads * arch.head_dim
