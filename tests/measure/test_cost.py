"""Bytes and operations against the decoder's own weights and against sums by hand."""

import pytest
import torch

from ember.lora.adapter import ATTENTION, linears
from ember.measure.cost import (
    parameters_read,
    prefill_operations,
    read_ms,
    roofline_ms,
    step_bytes,
    step_operations,
    step_tokens,
    switch_bytes,
)
from ember.model.decoder import Decoder
from tests.tiny import ARCHITECTURES, tiny


@pytest.fixture(params=[(name, tied) for name in ARCHITECTURES for tied in (True, False)], ids=str)
def decoder(request):
    family, tied = request.param
    with torch.device("meta"):
        return Decoder(tiny(family, tie_embeddings=tied))


def matrices(decoder):
    """Weights of the products inside the layers."""
    names = {name for name, p in decoder.named_parameters() if p.ndim == 2}
    return sum(p.numel() for n, p in decoder.named_parameters() if n in names and "layers." in n)


def test_a_step_reads_every_weight_once_but_not_an_untied_embedding(decoder):
    arch = decoder.arch
    weights = sum(p.numel() for p in decoder.parameters())
    looked_up = 0 if arch.tie_embeddings else decoder.embed_tokens.weight.numel()
    assert parameters_read(arch) == weights - looked_up
    kv = 10 * 3 * 2 * arch.num_kv_heads * 8 * 2  # tokens, layers, k and v, heads, dimension, bytes
    assert step_bytes(arch, 2, 10) == (2 * (weights - looked_up), kv)


def test_the_average_step_reads_half_of_what_each_row_makes():
    context, rows, new = 100, 3, 8
    steps = [context + rows * own for own in range(1, new)]
    assert step_tokens(context, rows, new) == sum(steps) / len(steps)


def test_operations_of_a_step_are_two_a_weight_and_four_a_dimension_and_token(decoder):
    done = step_operations(decoder.arch, 5, 7)
    assert done.matrices == 2 * 5 * parameters_read(decoder.arch)
    assert done.attention == 7 * 4 * 3 * 4 * 8
    assert done.total == done.matrices + done.attention


def test_a_prefill_of_one_token_works_each_matrix_once(decoder):
    assert prefill_operations(decoder.arch, 1).matrices == 2 * matrices(decoder)


def test_reuse_saves_the_matrices_by_tokens_and_attention_by_area(decoder):
    arch = decoder.arch

    def saved(reused):
        whole, rest = prefill_operations(arch, 96), prefill_operations(arch, 96, reused)
        return whole.matrices - rest.matrices, whole.attention - rest.attention

    assert saved(40)[0] == 2 * saved(20)[0]
    inner_layers = arch.num_layers - 1  # of the last layer only one query is run
    assert saved(40)[1] == 4 * arch.num_heads * arch.head_dim * inner_layers * 40 * 41 / 2


def test_a_switch_reads_and_writes_what_is_adapted(decoder):
    adapted = [m.weight.nbytes for (_, name), m in linears(decoder).items() if name in ATTENTION]
    arch = decoder.arch
    width = (arch.num_heads + arch.num_kv_heads) * arch.head_dim
    assert switch_bytes(sum(adapted)) == 2 * 4 * 3 * 2 * 32 * width


def test_the_longer_of_reads_and_operations_is_the_limit():
    assert read_ms(3e9, 1.5) == 2000
    assert roofline_ms(3e9, 1e12, 1.5, 1.0) == 2000
    assert roofline_ms(3e9, 5e12, 1.5, 1.0) == 5000
