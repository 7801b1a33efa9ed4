"""Weights of a decoder in the blocks that a decoding step reads, shared with the decoder.

Contract. Packing moves the query, key and value weights of a layer into one block, and the gate and
up weights into another; the decoder's own parameters become views of the blocks. So in-place
changes of weights (an optimizer's, a merged adapter's) show in both. Packing twice moves nothing.
"""

import torch
from torch import Tensor, nn

from ember.model.decoder import Decoder, Layer
from ember.model.linear import bias_of, dense_weight


class PackedLayer:
    """The weights of one layer as a step reads them; a bias is None where the layer has none."""

    def __init__(self, layer: Layer):
        attention, mlp = layer.self_attn, layer.mlp
        self.input_norm = layer.input_layernorm.weight.detach()  # (H,)
        self.post_norm = layer.post_attention_layernorm.weight.detach()  # (H,)
        qkv = [attention.q_proj, attention.k_proj, attention.v_proj]
        self.qkv, self.qkv_bias = _pack_linears(qkv)  # ((Hq + 2 Hkv) D, H)
        self.o, self.o_bias = _pack_linears([attention.o_proj])  # (H, Hq D)
        self.gate_up, self.gate_up_bias = _pack_linears([mlp.gate_proj, mlp.up_proj])  # (2 I, H)
        self.down, self.down_bias = _pack_linears([mlp.down_proj])  # (H, I)


class PackedDecoder:
    """All weights of a decoder, packed."""

    def __init__(self, decoder: Decoder):
        self.layers = [PackedLayer(layer) for layer in decoder.layers]
        self.qk_norms = _pack_qk_norms(decoder) if decoder.arch.qk_norm else None  # (L, 2, D)
        self.embedding = decoder.embed_tokens.weight.detach()  # (V, H)
        self.norm = decoder.norm.weight.detach()  # (H,)
        head = decoder.embed_tokens if decoder.lm_head is None else decoder.lm_head
        self.head = head.weight.detach()  # (V, H)


def addresses(decoder: Decoder) -> tuple[int, ...]:
    """Where the parameters lie: others once they have been replaced, moved or packed, the same
    after in-place changes."""
    return tuple(parameter.data_ptr() for parameter in decoder.parameters())


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
    # The mode the weights were made in: inference tensors could not be trained any more.
    with torch.inference_mode(first.is_inference()), torch.no_grad():
        packed = torch.cat([parameter.detach() for parameter in parameters])
        for parameter, part in zip(parameters, packed.split(rows), strict=True):
            parameter.data = part
    return packed


def _pack_linears(linears: list[nn.Module]) -> tuple[Tensor, Tensor | None]:
    """Weights (sum of rows, columns) and biases of linear layers, stacked."""
    biases = [bias_of(linear) for linear in linears]
    weights = pack([dense_weight(linear) for linear in linears])
    return weights, None if biases[0] is None else pack(biases)


def _pack_qk_norms(decoder: Decoder) -> Tensor:
    """Weights of the query and key norms of all layers, (L, 2, D)."""
    attentions = [layer.self_attn for layer in decoder.layers]
    packed = pack([norm.weight for a in attentions for norm in (a.q_norm, a.k_norm)])
    return packed.unflatten(0, (len(attentions), 2, -1))
