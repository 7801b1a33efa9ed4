"""The first token by every path of the same 4-bit weights: the path with the fault is told."""

from copy import deepcopy

import torch

from ember.model.packed import densify, quantise_decoder
from ember.records.tables import write_table
from ember.studies.lowbit.debug import measure
from ember.studies.lowbit.debug.tables import LOWBIT_FIRST_TOKEN
from tests.tiny import wild

ABOUT = {"device": "cpu", "device_name": "a CPU", "dtype": "float32", "model": "small"}


def test_misread_scales_are_found_in_the_path_that_misreads_them(monkeypatch, tmp_path):
    dense = wild("qwen3", seed=1, hidden_size=64, intermediate_size=64, head_dim=16)
    got = deepcopy(dense)
    quantise_decoder(got, "nvfp4")
    reference = deepcopy(got)
    densify(reference)
    about = ABOUT | {"weights": "random", "evidence": "measured"}
    made = (dense, got, reference, torch.tensor([[1, 2, 3, 4, 5]]), about)
    monkeypatch.setattr(measure, "_decoders", lambda *_: made)
    rows = measure.compare_paths(
        **dict.fromkeys(("model", "tokenizer", "corpus", "device", "dtype")),
        tokens=5,
        seed=0,
        max_kl=0.05,
    )
    write_table(tmp_path / "table.parquet", rows, LOWBIT_FIRST_TOKEN)
    by = {(row["planted"], row["path"]): row for row in rows}
    assert {planted for planted, _ in by} == {
        *("none", "packed", "training", "packed, one layer", "training, one layer")
    }
    for path in ("training", "packed"):
        for planted in ("packed", "training"):
            assert by[planted, path]["found"] == (path == planted)
        assert by["none", path]["kl"] < 1e-6  # of the same codes
        assert by["none", path]["overlap"] == 10
    assert by["none", "unquantised"]["kl"] > 1e-4
    assert all(row["kl"] == 0 for row in rows if row["path"] == "reference")
    assert not any(layer.scale.dtype == torch.float32 for layer in measure._packed_layers(got))
