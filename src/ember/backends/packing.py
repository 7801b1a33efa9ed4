"""Weights of a decoder in the blocks that a decoding step reads, shared with the decoder.

Contract. Packing moves the query, key and value weights of a layer into one block, and the gate and
up weights into another; the decoder's own parameters become views of the blocks. So in-place
changes of weights (an optimizer's, a merged adapter's) show in both. Packing twice moves nothing.
"""

from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ember.model.decoder import Decoder, Layer
from ember.model.linear import bias_of, dense_weight, packed_matrix, weight_format
from ember.model.packed import PackedLinear, PackedMatrix, kernel_order

Weight = Tensor | PackedMatrix  # (N, K)


class Norm(NamedTuple):
    """What a norm has, each (H,); a bias only where it is a LayerNorm."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, module: nn.Module) -> "Norm":
        """A module's; see `ember.model.decoder.make_norm`."""
        bias = getattr(module, "bias", None)
        return cls(module.weight.detach(), None if bias is None else bias.detach())


class PackedLayer:
    """The weights of one layer as a step reads them; what the layer lacks is None."""

    def __init__(self, layer: Layer, laid: bool = False):
        attention, mlp = layer.self_attn, layer.mlp
        self.input_norm = Norm.of(layer.input_layernorm)
        self.post_norm = Norm.of(layer.post_attention_layernorm)
        self.attn_out_norm, self.mlp_out_norm = (
            None if norm is None else Norm.of(norm)
            for norm in (layer.attn_out_norm, layer.mlp_out_norm)
        )
        qkv = [attention.q_proj, attention.k_proj, attention.v_proj]
        self.qkv, self.qkv_bias = _pack_linears(qkv, laid)  # ((Hq + 2 Hkv) D, H)
        self.o, self.o_bias = _pack_linears([attention.o_proj], laid)  # (H, Hq D)
        gate_up = [mlp.up_proj] if mlp.gate_proj is None else [mlp.gate_proj, mlp.up_proj]
        # (2 I, H), without a gate (I, H)
        self.gate_up, self.gate_up_bias = _pack_linears(gate_up, laid)
        self.down, self.down_bias = _pack_linears([mlp.down_proj], laid)  # (H, I)


class PackedDecoder:
    """All weights of a decoder, packed. `prefill_by`: how 4-bit ones are multiplied in prefills on
    CUDA, "dequantise" or "fp8"; `laid`: for CUDA's kernels."""

    def __init__(self, decoder: Decoder, prefill_by: str = "dequantise", *, laid: bool = False):
        self.prefill_by = prefill_by
        self.layers = [PackedLayer(layer, laid) for layer in decoder.layers]
        self.qk_norms = self.qk_norm_biases = None  # (L, 2, D)
        if decoder.arch.qk_norm:
            self.qk_norms = _pack_qk_norms(decoder, "weight")
            if decoder.arch.norm == "layer":
                self.qk_norm_biases = _pack_qk_norms(decoder, "bias")
        self.embedding = decoder.embed_tokens.weight.detach()  # (V, H)
        self.norm = Norm.of(decoder.norm)
        if decoder.lm_head is None:
            self.head = self.embedding  # (V, H)
        else:
            self.head, _ = _pack_linears([decoder.lm_head], laid)


def addresses(decoder: Decoder) -> tuple[int | str, ...]:
    """Where the parameters lie and in which order codes are: others once they have been replaced,
    moved, packed or laid, the same after in-place changes."""
    lie = (t.data_ptr() for each in (decoder.parameters(), decoder.buffers()) for t in each)
    return (*lie, *(m.order for m in decoder.modules() if isinstance(m, PackedLinear)))


def pack(parameters: list[Tensor]) -> Tensor:
    """One tensor that stacks the parameters (or buffers) along their first dimension, and of which
    they are views from now on. Nothing moves where they already are."""
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


def _pack_linears(linears: list[nn.Module], laid: bool) -> tuple[Weight, Tensor | None]:
    """Weights (sum of rows, columns) and biases of linear layers, stacked."""
    biases = [bias_of(linear) for linear in linears]
    if weight_format(linears[0]) == "dense":
        weights = pack([dense_weight(linear) for linear in linears])
    else:
        ends = tuple(accumulate(linear.out_features for linear in linears))
        order = kernel_order(linears[0].in_features, ends) if laid else "file"
        weights = _stack([packed_matrix(linear, order) for linear in linears])
    return weights, None if biases[0] is None else pack(biases)


def _stack(parts: list[PackedMatrix]) -> PackedMatrix:
    """Matrices of one format over each other. Raises TypeError where formats differ."""
    if len(formats := {part.format for part in parts}) > 1:
        raise TypeError(
            f"weights that are read together are {' and '.join(sorted(formats))}.\n"
            "Quantise query, key and value alike, and gate and up."
        )
    overall = None if parts[0].overall is None else pack([part.overall for part in parts])
    codes, scales = (pack([getattr(part, name) for part in parts]) for name in ("codes", "scales"))
    ends = tuple(accumulate(len(part) for part in parts))
    return PackedMatrix(parts[0].format, codes, scales, overall, ends, parts[0].order)


def _pack_qk_norms(decoder: Decoder, which: str) -> Tensor:
    """Weights or biases of the query and key norms of all layers, (L, 2, D)."""
    attentions = [layer.self_attn for layer in decoder.layers]
    packed = pack([getattr(norm, which) for a in attentions for norm in (a.q_norm, a.k_norm)])
    return packed.unflatten(0, (len(attentions), 2, -1))
