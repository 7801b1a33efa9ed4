"""Streams, and the sink gate on a model whose sink is built in."""

import json

import pytest
import torch

from ember.model.checkpoint import save_decoder
from ember.studies.shared.corpora.tables import CORPUS
from ember.studies.streaming.diagnose.measure import time_tokens
from ember.studies.streaming.quality.measure import measure_quality
from ember.studies.streaming.sinks.measure import measure_sinks
from ember.studies.streaming.sinks.summary import judge_sinks
from ember.studies.streaming.streams import BadStreams, cut_streams, structural_tokens
from ember.text.tokenizer import TOKENIZER_FILES, load_tokenizer, save_tokenizer, train_bpe
from tests.rows import example
from tests.tiny import decoder_of, tiny

TEXT = "The cat sat on the mat. It said: so what?\n" * 60
RUNTIME = {"device": "cpu", "dtype": "float32", "seed": 1}
STREAMS = {"corpus": "long", "streams": 3, "tokens": 90}
EVALUATED = {"long": STREAMS, "short": STREAMS}


def corpus():
    return [
        example(CORPUS, split=split, doc=f"{split}-{n}", text=f"{n}{TEXT}", sha256=f"{split}{n}")
        for n in range(2)
        for split in ("train", "test")
    ]


def with_sink(arch):
    """A decoder whose every query finds the start token's key, which no other token resembles, and
    whose value is nothing: attention that has nowhere to go goes there."""
    decoder = decoder_of(arch, scale=0.15)
    layer = decoder.layers[0]
    rotated = arch.rotary_dim
    with torch.no_grad():
        layer.input_layernorm.weight.fill_(1.0)
        layer.input_layernorm.bias.zero_()
        decoder.embed_tokens.weight[:, -1] = 0.0
        decoder.embed_tokens.weight[arch.bos_token_id] = 0.0
        decoder.embed_tokens.weight[arch.bos_token_id, -1] = 8.0
        for projection in (layer.self_attn.k_proj, layer.self_attn.v_proj):
            projection.weight[:, -1] = 0.0
        for head in range(arch.num_heads):
            at = head * arch.head_dim + rotated  # a dimension that is not rotated
            layer.self_attn.q_proj.weight[at] = 0.0
            layer.self_attn.q_proj.bias[at] = 6.0
            layer.self_attn.k_proj.weight[at] = 0.0
            layer.self_attn.k_proj.weight[at, -1] = 1.0
            layer.self_attn.k_proj.bias[at] = 0.0
    return decoder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    save_tokenizer(train_bpe([TEXT], 300), folder)
    vocabulary = load_tokenizer(folder).vocab_size
    arch = tiny("gpt_neox", vocab_size=vocabulary, max_positions=64, bos_token_id=0, eos_token_id=0)
    files = [folder / name for name in TOKENIZER_FILES]
    save_decoder(with_sink(arch), folder / "sink", about={}, extra_files=files)
    return folder / "sink"


def test_streams_begin_with_the_start_token(model):
    found = cut_streams(model, corpus(), STREAMS)
    assert found.shape == (3, 90)
    assert (found[:, 0] == 0).all()
    text = load_tokenizer(model).decode(found[0, 1:40].tolist())
    assert text.startswith("0The cat sat")


def test_too_little_text_is_an_error(model):
    with pytest.raises(BadStreams, match="lower streams or tokens"):
        cut_streams(model, corpus(), STREAMS | {"tokens": 10**6})


def test_a_model_without_a_start_token_is_an_error(model, tmp_path):
    for file in model.iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((model / "config.json").read_text()) | {"bos_token_id": None}
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadStreams, match="no start token"):
        cut_streams(tmp_path, corpus(), STREAMS)


def test_a_test_set_is_taken_whole(model):
    long = {"corpus": "long", "streams": 3, "tokens": 1100}
    with pytest.raises(BadStreams, match="lower streams"):
        cut_streams(model, corpus(), long)
    assert cut_streams(model, corpus(), long | {"whole": True}).shape == (3, 1100)


def test_a_peak_beyond_the_trained_context_is_an_error(model):
    spec = {"name": "overlap", "peak": 80, "compression_interval": 8, "overlap": 4}
    with pytest.raises(BadStreams, match="more than the 64 that sink was trained with"):
        measure_quality(
            model=model,
            long=corpus(),
            short=corpus(),
            evaluated=EVALUATED,
            specs=[spec],
            alone=2,
            runtime=RUNTIME,
        )


def test_ends_of_lines_are_structural(model):
    found, tokenizer = structural_tokens(model), load_tokenizer(model)
    assert found[tokenizer.encode(".")[0]]
    assert not found[tokenizer.encode("c")[0]]


def test_a_sink_that_is_built_in_is_found(model):
    mass, gaps = measure_sinks(
        model=model, long=corpus(), short=corpus(), evaluated=EVALUATED, peak=16, runtime=RUNTIME
    )
    assert mass[0]["mass"] > 0.3
    assert mass[0]["mass"] > 3 * mass[1]["mass"]
    assert len(gaps) == 6
    rows = judge_sinks(mass, gaps, min_mass=0.05, seed=1)
    assert all(row["max_mass"] == mass[0]["mass"] for row in rows)


def test_points_of_a_method(model):
    specs = [
        {"name": "adaptive", "peak": 24, "compression_interval": 8},
        {"name": "lazy_prune", "peak": 24, "compression_interval": 8},
        {"name": "full", "peak": 24},
    ]
    rows = measure_quality(
        model=model,
        long=corpus(),
        short=corpus(),
        evaluated=EVALUATED,
        specs=specs,
        alone=2,
        runtime=RUNTIME,
    )
    assert [row["stream"] for row in rows if row["corpus"] == "long"] == [0, 1, 0, 1, 2, 0, 1, 2]
    lengths = {row["method"]: len(row["nll"]) for row in rows}
    assert lengths == {"adaptive": 89, "lazy_prune": 89, "full": 23}
    lazy = next(row for row in rows if row["method"] == "lazy_prune")
    assert lazy["visible_max"] == 24
    assert lazy["drop_sizes"] == [8] * 9


def test_each_point_is_timed_on_its_path(model):
    at = {"peak": 24, "compression_interval": 8}
    points = (("lazy_prune", 4), ("lazy_prune", 8), ("slack", 8), ("tova", 8))
    specs = [{"name": name, **at, "compression_interval": r} for name, r in points]
    specs[2]["slack"] = 4
    latency = {"prefill": 24, "tokens": 60, "skip": 4, "warmup": 1, "repeats": 3}
    rows = time_tokens(
        model=model,
        long=corpus(),
        specs=specs,
        latency=latency | {"eager_repeats": 2},
        corpus="long",
        runtime=RUNTIME,
    )
    found = {}
    for row in rows:
        found.setdefault((row["method"], row["compression_interval"], row["path"]), []).append(row)
    assert {key: len(some) for key, some in found.items()} == {
        ("lazy_prune", 4, "compiled"): 3,
        ("lazy_prune", 8, "compiled"): 3,
        ("slack", 8, "compiled"): 3,
        ("lazy_prune", 8, "eager"): 2,  # beside what has no other path with that period
        ("tova", 8, "eager"): 2,
    }
    assert {key[0] for key, [one, *_] in found.items() if one["no_fast_path"]} == {"tova"}
    [quick, *_], [slow, *_] = (found["lazy_prune", 8, path] for path in ("compiled", "eager"))
    assert (len(quick["token_ms"]), len(slow["token_ms"])) == (60 - 23, 4 + 8)
    assert slow["drop_steps"] == quick["drop_steps"][:2] == [1, 9]
