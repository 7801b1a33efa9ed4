"""Published fusers: their layout read by our names, their forward by ours, and what is refused."""

import contextlib
import json
import random

import pytest
import torch
import torch.nn.functional as F

from ember.c2c.align import BadAlignment, check_mode
from ember.c2c.fuse import fuse
from ember.c2c.fuser import BadFuser, FuserShape, LayerFuser
from ember.c2c.published import (
    fetch_published,
    published_alignment,
    published_name,
    read_published,
)
from ember.c2c.source import SourceKV
from ember.model.architecture import Architecture
from tests.c2c import real
from tests.tiny import tiny

RECEIVER = tiny("qwen3", num_layers=4)
SHARER = tiny("qwen2", num_layers=3, num_kv_heads=1, num_heads=2, head_dim=12, hidden_size=24)
SHAPE = FuserShape.of(SHARER, RECEIVER, 20)
SOURCES = (0, 0, 1, 2)  # the last layers meet


def reference_forward(state, branch, source, own):
    """One branch as published, from a layer's state: (B, H, N, D) in and out."""

    def linear(name, x):
        return F.linear(x, state[f"{branch}_{name}.weight"], state.get(f"{branch}_{name}.bias"))

    def block(name, x):
        normed = x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        normed = normed * state[f"{branch}_{name}.blocks.0.norm.weight"]
        return x + linear(f"{name}.blocks.0.w2", F.gelu(linear(f"{name}.blocks.0.w1", normed)))

    batch, heads, tokens, size = own.shape
    flat = [x.transpose(1, 2).reshape(batch, tokens, -1) for x in (source, own)]
    hidden = block("mlp1", linear("in", torch.cat(flat, -1)))
    projected = linear("proj_out", block("proj_mlp2", hidden))
    projected = projected.view(batch, tokens, heads, size).transpose(1, 2)
    weight = linear("scalar_head", block("scalar_mlp2", hidden)).sigmoid()
    gate = (state[f"{branch}_gate_logit"] > 0).float()
    return own + gate * weight.permute(0, 2, 1).unsqueeze(-1) * projected


def test_a_published_fuser_computes_what_its_authors_do(tmp_path):
    folder = real.published(
        tmp_path, SHAPE, SOURCES, gates=[1.0, -1.0, 0.5, 0.0], order=[2, 0, 3, 1]
    )
    fuser = read_published(folder, SHARER, RECEIVER)
    assert (fuser.sources, fuser.rotated, fuser.noise) == (SOURCES, True, "gumbel")
    assert fuser.used_sources() == (0, 1)
    g = torch.Generator().manual_seed(9)
    theirs = [
        tuple(torch.randn(2, 1, 5, 12, generator=g) for _ in range(2)) for _ in range(3)
    ]  # published order: heads before tokens
    own = [tuple(torch.randn(2, 2, 5, 8, generator=g) for _ in range(2)) for _ in range(4)]
    source = SourceKV(
        *(tuple(kv[n].transpose(1, 2) for kv in theirs) for n in range(2)),
        layers=(0, 1, 2),
        tokens=torch.ones(2, 5, dtype=torch.bool),
        rotated=True,
    )
    mine = [tuple(x.transpose(1, 2) for x in kv) for kv in own]
    with torch.inference_mode():
        found = fuse(fuser, mine, source, source.tokens)
    for layer, source_layer in enumerate(SOURCES):
        state = real.projector_state(SHAPE, seed=layer, gate=[1.0, -1.0, 0.5, 0.0][layer])
        for place, branch in enumerate(("key", "value")):
            wanted = reference_forward(
                state, branch, theirs[source_layer][place], own[layer][place]
            )
            torch.testing.assert_close(found[layer][place].transpose(1, 2), wanted)
            changed = not torch.equal(wanted, own[layer][place])
            assert changed == (layer in (0, 2))  # gates that are open


def test_every_name_maps_both_ways():
    ours = [name for name, _ in LayerFuser(SHAPE).named_parameters()]
    theirs = [published_name(name) for name in ours]
    assert len(set(theirs)) == len(theirs)
    assert {*theirs} | {"gate_temperature"} == {*real.projector_state(SHAPE)}


def test_the_published_shape_has_its_17_066_002_parameters_a_layer(tmp_path):
    receiver = Architecture.make("qwen3-0.6b")
    sharer = Architecture.make("qwen2.5-0.5b")
    assert (receiver.num_layers, sharer.num_layers) == (28, 24)
    shape = FuserShape.of(sharer, receiver, 1024)
    with torch.device("meta"):
        layer = LayerFuser(shape)
    assert sum(p.numel() for p in layer.parameters()) == 17_066_002
    assert sum(p.numel() for p in layer.key.parameters()) == 8_533_001


def test_the_training_says_which_alignment(tmp_path):
    folder = real.published(tmp_path, SHAPE, SOURCES)
    assert published_alignment(folder) == "longest"
    with pytest.raises(BadAlignment, match="trained with alignment 'longest'"):
        check_mode(published_alignment(folder), "first")
    config = {"model": {"is_do_alignment": False, "alignment_strategy": "longest"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert published_alignment(folder) == "off"
    (tmp_path / "config.json").unlink()
    assert published_alignment(folder) == "off"


def rewritten(folder, change, number=0):
    path = folder / f"projector_{number}.pt"
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


def test_left_over_and_missing_names_are_refused(tmp_path):
    folder = real.published(tmp_path, SHAPE, SOURCES)
    rewritten(folder, lambda state: state.update(extra=torch.zeros(1)), 2)
    with pytest.raises(BadFuser, match=r"projector_2\.pt has the unknown 'extra'.* It holds: "):
        read_published(folder, SHARER, RECEIVER)
    rewritten(folder, lambda state: (state.pop("extra"), state.pop("key_gate_logit")), 2)
    with pytest.raises(BadFuser, match="lacks 'key_gate_logit'"):
        read_published(folder, SHARER, RECEIVER)


def test_an_unknown_layout_says_what_was_found(tmp_path):
    folder = real.published(tmp_path, SHAPE, SOURCES)

    def rename(state):
        state.update({f"module.{name}": state.pop(name) for name in [*state]})

    rewritten(folder, rename)
    with pytest.raises(BadFuser, match=r"layout .* is unknown.*module\.key_gate_logit"):
        read_published(folder, SHARER, RECEIVER)
    (folder / "projector_1.pt").unlink()
    with pytest.raises(BadFuser, match=r"It holds: 'projector_0\.json', 'projector_0\.pt'"):
        read_published(folder, SHARER, RECEIVER)


def test_another_pair_is_refused(tmp_path):
    folder = real.published(tmp_path, SHAPE, SOURCES)
    with pytest.raises(BadFuser, match="fusers for 4 layers"):
        read_published(folder, SHARER, tiny("qwen3", num_layers=5))
    with pytest.raises(BadFuser, match="this pair needs"):
        read_published(folder, tiny("qwen2"), RECEIVER)
    with pytest.raises(BadFuser, match="another pair"):
        read_published(folder, tiny("qwen2", num_layers=1), RECEIVER)


def test_closed_gates_are_refused(tmp_path):
    folder = real.published(tmp_path, SHAPE, SOURCES, gates=[0.0, -1.0, -0.5, 0.0])
    with pytest.raises(BadFuser, match="no gate"):
        read_published(folder, SHARER, RECEIVER)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ({"0": [[0, 0]], "1": [[0, 1], [1, 2]], "2": [[1, 2]], "3": [[2, 3]]}, "for layer 1"),
        ({"0": [[0, 0]], "1": [[0, 9]], "2": [[1, 2]], "3": [[2, 3]]}, "for layer 1"),
        ({"0": [[0, 0]], "1": [[0, "1"]], "2": [[1, 2]], "3": [[2, 3]]}, "for layer 1"),
        ({"0": [[0, 0]], "1": [[0, 0]], "2": [[1, 2]], "3": [[2, 3]]}, "each of 4 files once"),
        ({"0": [[0, 0]], "5": [[0, 1]]}, "lacks '1'"),
    ],
)
def test_layouts_that_are_not_one_file_a_layer_are_refused(tmp_path, layers, said):
    folder = real.published(tmp_path, SHAPE, SOURCES)
    (folder / "projector_config.json").write_text(json.dumps({"0": {"1": layers}}))
    with pytest.raises(BadFuser, match=said):
        read_published(folder, SHARER, RECEIVER)
    (folder / "projector_config.json").write_text(json.dumps({"0": {"1": layers, "2": {}}}))
    with pytest.raises(BadFuser, match="not of one receiver and one sharer"):
        read_published(folder, SHARER, RECEIVER)


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("a stranger's pickle has run",))


def test_strangers_pickles_run_nothing(tmp_path):
    folder = real.published(tmp_path, SHAPE, SOURCES)
    torch.save({"key_in.weight": Trap()}, folder / "projector_0.pt")
    with pytest.raises(BadFuser, match=r"projector_0\.pt cannot be read"):
        read_published(folder, SHARER, RECEIVER)
    torch.save([1, 2], folder / "projector_0.pt")
    with pytest.raises(BadFuser, match="not a dictionary of tensors"):
        read_published(folder, SHARER, RECEIVER)
    whole = (folder / "projector_1.pt").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"\x80\x02."):
        (folder / "projector_0.pt").write_bytes(content)
        with pytest.raises(BadFuser, match=r"projector_0\.pt cannot be read"):
            read_published(folder, SHARER, RECEIVER)


def test_changed_bytes_give_a_fuser_or_an_error(tmp_path):
    folder = real.published(tmp_path, SHAPE, SOURCES)
    file = folder / "projector_0.pt"
    whole, rng, read = file.read_bytes(), random.Random(0), 0
    for number in range(120):
        content = bytearray(whole)
        start = 0 if number % 2 else len(whole) - 6000  # names and sizes stand at the end
        for _ in range(rng.randint(1, 3)):
            content[rng.randrange(start, len(whole))] = rng.randrange(256)
        file.write_bytes(content[: rng.randrange(len(content))] if number % 5 == 0 else content)
        with contextlib.suppress(BadFuser):
            fuser = read_published(folder, SHARER, RECEIVER)
            assert all(p.isfinite().all() for p in fuser.parameters())
            read += 1
    assert 0 < read < 120


def test_a_fuser_by_path_or_from_the_hub(tmp_path, monkeypatch):
    folder = real.published(tmp_path / "pair", SHAPE, SOURCES)
    assert fetch_published(str(folder)) == folder
    assert fetch_published(str(tmp_path), "pair/final") == folder
    with pytest.raises(BadFuser, match="no folder"):
        read_published(fetch_published(str(tmp_path), "other/final"), SHARER, RECEIVER)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BadFuser, match="cannot be had from the hub"):
        fetch_published("no/such", "pair/final")
