"""A model directory small enough for tests of what runs a model."""

import json

import pytest

from ember.model.architecture import Architecture


@pytest.fixture(scope="session")
def random_model(tmp_path_factory):
    """A directory that declares random weights: two layers, vocabulary of 97."""
    arch = Architecture.make(
        model_type="qwen3",
        hidden_size=16,
        intermediate_size=24,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        vocab_size=97,
        max_positions=256,
        tie_embeddings=True,
    )
    folder = tmp_path_factory.mktemp("random-model")
    (folder / "config.json").write_text(json.dumps(arch.to_hf()))
    (folder / "ember.json").write_text('{"weights": "random", "seed": 1}')
    return folder
