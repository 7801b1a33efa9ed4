"""Random small architectures, for properties that hold whatever the decoder has."""

import torch
from hypothesis import strategies as st

from ember.model.architecture import NORMS, Architecture
from ember.model.decoder import Decoder
from ember.model.families import ACTIVATIONS
from ember.model.rope import RopeScaling
from tests import tiny

SWITCHES = (
    "qk_norm",
    "post_norms",
    "parallel_residual",
    "qkv_bias",
    "o_bias",
    "mlp_bias",
    "gated_mlp",
    "scaled_embedding",
    "tie_embeddings",
)


@st.composite
def architectures(draw) -> Architecture:
    """Any combination of the decoder's features, also such as no published model has."""
    layers = draw(st.integers(1, 3))
    kv_heads, groups = draw(st.sampled_from([(1, 1), (1, 3), (2, 1), (2, 2)]))
    head_dim = draw(st.sampled_from([4, 8]))
    return Architecture.make(
        model_type="llama",
        hidden_size=draw(st.sampled_from([8, 12])),
        intermediate_size=draw(st.sampled_from([8, 20])),
        num_layers=layers,
        num_heads=kv_heads * groups,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=31,
        max_positions=64,
        norm=draw(st.sampled_from(sorted(NORMS))),
        activation=draw(st.sampled_from(sorted(ACTIVATIONS))),
        query_scalar=draw(st.sampled_from([None, 3.0])),
        rope_fraction=draw(st.sampled_from([0.5, 1.0])),
        rope_local_theta=draw(st.sampled_from([None, 100.0])),
        rope_scaling=draw(
            st.sampled_from([None, RopeScaling(4.0), RopeScaling(8.0, 1.0, 4.0, 16)])
        ),
        sliding_window=draw(st.integers(1, 6)),
        sliding_layers=tuple(sorted(draw(st.sets(st.integers(0, layers - 1))))),
        **{name: draw(st.booleans()) for name in SWITCHES},
    )


def decoder_of(arch: Architecture, seed: int = 0) -> Decoder:
    """In float64, so that what should be equal is to the last digits."""
    return tiny.decoder_of(arch, seed, torch.float64, scale=0.5)


def tokens_of(arch: Architecture, batch: int, count: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(arch.vocab_size, (batch, count), generator=generator)
