"""The fuser's shape, its gates, and what of it is refused."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ember.c2c.fuser import (
    BadFuser,
    Fuser,
    FuserShape,
    LayerFuser,
    layer_map,
    load_fuser,
    save_fuser,
)
from ember.model.architecture import Architecture
from tests.c2c import small


def parameters(module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_published_shape_has_the_published_number_of_parameters():
    sharer, receiver = map(Architecture.make, ("qwen2.5-0.5b", "qwen3-0.6b"))
    with torch.device("meta"):
        layer = LayerFuser(FuserShape.of(sharer, receiver, 1024))
    assert parameters(layer.key) == 8_533_001
    assert parameters(layer) == 17_066_002
    assert receiver.num_layers == 28


def test_a_branch_is_the_formula_written_out():
    """C-0.1: linear, FFN, fork of FFN -> linear and FFN -> linear -> sigmoid."""
    torch.manual_seed(0)
    branch = LayerFuser(FuserShape(2, 3, 4, 5, 7)).key
    source, own = torch.randn(2, 6, 2, 3), torch.randn(2, 6, 4, 5)

    def ffn(block, x):
        normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * block.norm.weight
        hidden = torch.nn.functional.gelu(normed @ block.up.weight.T)
        return x + hidden @ block.down.weight.T

    def linear(layer, x):
        return x @ layer.weight.T + layer.bias

    x = torch.cat([source.reshape(2, 6, 6), own.reshape(2, 6, 20)], -1)
    x = ffn(branch.shared, linear(branch.enter, x))
    projected = linear(branch.project_out, ffn(branch.project, x)).reshape(2, 6, 4, 5)
    weight = torch.sigmoid(linear(branch.weigh_out, ffn(branch.weigh, x)))[..., None]
    torch.testing.assert_close(branch(source, own), weight * projected)


@given(sharer=st.integers(1, 40), receiver=st.integers(1, 40))
def test_layer_maps(sharer, receiver):
    last, depth = (layer_map(kind, sharer, receiver) for kind in ("last", "depth"))
    for found in (last, depth):
        assert len(found) == receiver
        assert list(found) == sorted(found)
        assert set(found) <= set(range(sharer))
        assert found[-1] == sharer - 1 or receiver == 1
    assert last == tuple(max(0, t + sharer - receiver) for t in range(receiver))
    assert depth[0] == 0


def test_published_pair_maps_its_last_layers():
    assert layer_map("last", 24, 28) == (0, 0, 0, 0, *range(24))


def fresh(noise: str) -> Fuser:
    return Fuser(FuserShape(1, 4, 2, 4, 8), (0, 1, 1), noise=noise)


@pytest.mark.parametrize(("noise", "probability"), [("logistic", 0.5), ("gumbel", 0.632)])
def test_noise_opens_an_undecided_gate_as_often_as_its_distribution_says(noise, probability):
    torch.manual_seed(0)
    fuser = fresh(noise)
    drawn = [fuser.soft_gates(1e-3, 16, 20) for _ in range(1 if noise == "gumbel" else 4000)]
    opened = torch.cat([gate.flatten() for gates in drawn for pair in gates for gate in pair])
    assert abs((opened > 0.5).float().mean().item() - probability) < 0.02
    shape = drawn[0][0][0].shape
    assert shape == (() if noise == "logistic" else (16, 20, 2, 1))
    assert fuser.open_gates() == [[False, False]] * 3  # at inference it is closed


def test_only_layers_that_an_open_gate_reads_are_used():
    fuser = fresh("logistic")
    assert fuser.used_sources() == ()
    fuser[2].value.gate.data.fill_(0.1)
    assert fuser.used_sources() == (1,)
    fuser[0].key.gate.data.fill_(0.1)
    assert fuser.used_sources() == (0, 1)


def test_unknown_noise_and_layer_map():
    with pytest.raises(BadFuser, match="noise 'gauss'"):
        fresh("gauss")
    with pytest.raises(BadFuser, match="layer map 'first'"):
        layer_map("first", 2, 2)


@pytest.fixture
def kept(tmp_path):
    made = small.pair(rotated=True, noise="gumbel")
    save_fuser(made.fuser, tmp_path / "fuser", {"seed": 1})
    return made, tmp_path / "fuser"


def test_a_fuser_comes_back(kept):
    made, folder = kept
    found = load_fuser(folder, made.sharer.arch, made.receiver.arch)
    assert (found.rotated, found.noise, found.sources) == (True, "gumbel", made.fuser.sources)
    for name, value in made.fuser.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


def test_a_fuser_of_too_few_layers_is_refused(kept):
    made, folder = kept
    about = json.loads((folder / "fuser.json").read_text())
    about["sources"] = about["sources"][1:]
    (folder / "fuser.json").write_text(json.dumps(about))
    with pytest.raises(BadFuser, match="for 3 layers, and the receiver has 4"):
        load_fuser(folder, made.sharer.arch, made.receiver.arch)


def test_a_fuser_of_another_pair_is_refused(kept):
    made, folder = kept
    with pytest.raises(BadFuser, match="another pair"):
        load_fuser(folder, made.receiver.arch, made.receiver.arch)


def test_a_closed_fuser_is_refused(tmp_path):
    made = small.pair(opened=False)
    save_fuser(made.fuser, tmp_path / "fuser")
    with pytest.raises(BadFuser, match="is open: it changes nothing"):
        load_fuser(tmp_path / "fuser", made.sharer.arch, made.receiver.arch)


@pytest.mark.parametrize("missing", ["fuser.json", "fuser.safetensors"])
def test_an_incomplete_folder_is_refused(kept, missing):
    made, folder = kept
    (folder / missing).unlink()
    with pytest.raises(BadFuser, match="holds no fuser"):
        load_fuser(folder, made.sharer.arch, made.receiver.arch)


def test_tensors_that_are_left_over_or_missing_are_refused(kept):
    from safetensors.torch import load_file, save_file

    made, folder = kept
    tensors = load_file(folder / "fuser.safetensors")
    for wrong in (
        tensors | {"extra": torch.zeros(1)},
        {name: x for name, x in tensors.items() if not name.startswith("0.key.enter")},
        tensors | {"0.key.gate": torch.zeros(2)},
    ):
        save_file(wrong, folder / "fuser.safetensors")
        with pytest.raises(BadFuser, match="does not hold the tensors"):
            load_fuser(folder, made.sharer.arch, made.receiver.arch)
