"""Names, shapes, policies and lengths are checked against the library while planning."""

import json
import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.config.load import ConfigError, load
from ember.model.architecture import Architecture
from ember.operations.settings import CHECKS
from ember.peers.client import ADAPTERS
from tests.config.scales import SCALES, changed, having, leaves, merged


def checked(config):
    return load(config, (), CHECKS)


def refusal(config) -> str | None:
    """Why a configuration is refused; None where it is not."""
    try:
        checked(config)
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize("scale", SCALES)
def test_the_committed_scales_pass(scale):
    assert checked(merged(scale)).scale == scale


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("streaming", "model"), "policy", "policy was trained without a start token"),
        (("streaming", "model"), "sink", "streaming.model.*Did you mean 'sinks'"),
        (("streaming", "long", "corpus"), "lang", "streaming.long.corpus.*mean 'long'"),
        (("streaming", "long", "tokens"), 256, "long.tokens.*never fill a peak of 256"),
        (("streaming", "grid", 1, "peak"), 512, "grid.1.peak.*more than the 256"),
        (("streaming", "cause", "peak"), 224, "cause.peak.*288 tokens are more than the 256"),
        (("streaming", "cause", "n_sink"), 40, "streaming.cause.*leaves a window of 24"),
        (("streaming", "latency", "peak"), 64, "latency.peak.*no peak of the grid"),
        (("streaming", "peers", "budget", "peak"), 64, "budget.peak.*no peak of the grid"),
        (("streaming", "peers", "budget", "compression_interval"), [128], "leaves a window of -4"),
        (("streaming", "peers", "tokens"), 192, "peers.tokens.*more than peak and skip.*192"),
        (("streaming", "peers", "tokens"), 4096, "peers.tokens.*no more than streaming.long"),
        (("streaming", "peers", "streams"), 4096, "peers.streams.*more than streaming.long"),
        (
            ("streaming", "peers", "frameworks", "kvpress", "methods"),
            [{"method": "SnapKVPress", "arguments": {"window_size": 64}}],
            "methods.0.arguments.*below the least compression_interval .64",
        ),
        (("streaming", "latency", "tokens"), 300, "latency.tokens.*nothing to time"),
        (("streaming", "speed", "tokens"), 70, "speed.tokens.*leave fewer than 10 to time"),
        (("streaming", "speed", "peak"), 40, "streaming.speed.*leaves a window of"),
        (("streaming", "speed", "model"), "sink", "streaming.speed.model.*mean 'sinks'"),
        (("streaming", "points", 3, "name"), "lazy_prun", "points.3.*mean 'lazy_prune'"),
        (("streaming", "points", 3, "n_sink"), 64, "points.3.*leaves a window"),
        (
            ("streaming", "points", 8, "selector"),
            "unifrom",
            "points.8.*unknown selector 'unifrom'.*mean 'uniform'",
        ),
        (("streaming", "points", 7, "overlap"), 120, "points.7.*set overlap below it"),
        (("streaming", "programme", "selector"), "unifrom", "programme.*mean 'uniform'"),
        (("streaming", "programme", "refresh_budget"), 250, "programme.*leaves a window"),
        (("streaming", "points"), [{"name": "lazy_prune"}], "lack streaming_llm"),
        (("p1", "model"), "polcy", "p1.model.*Did you mean 'policy'"),
        (("p1", "policies"), [{"name": "naif"}], "policies.0.*naif.*Did you mean 'naive'"),
        (("p1", "policies"), [{"name": "updatable_kv", "every": 3}], "policies.0.*needs rank"),
        (("p1", "policies"), [{"name": "periodic_refresh", "evry": 3}], "mean 'every'"),
        (("p1", "policies"), [{"name": "naive", "rank": 3}], "naive has no 'rank'"),
        (("p1", "policies"), [{"name": "keep_region", "first_layers": 5}], "0..4"),
        (
            ("p1", "policies"),
            [{"name": "naive"}, {"name": "naive", "rank": None}],
            "policies.*once",
        ),
        (("p1", "architectures", "presets"), ["qwen3-0.6"], "presets.0.*mean 'qwen3-0.6b'"),
        (("models", "policy"), {"source": "random", "preset": "qwen9"}, "policy.preset.*'qwen3"),
        (("models", "policy", "architecture", "num_heads"), 3, "policy.architecture.*num_kv_heads"),
        (("models", "policy", "architecture", "hidden"), 3, "architecture field 'hidden'"),
        (("models", "policy", "training", "sequence_length"), 8193, "has 8192 positions"),
        (("p1", "frameworks", "points", 1, "preset"), "qwen3", "points.1.preset.*qwen3"),
        (
            ("p1", "frameworks", "points", 1, "prompt_tokens"),
            10**6,
            "points.1.*qwen3-0.6b has 40960",
        ),
        (("p1", "frameworks", "peers", "vllm", "adapter"), "vllm", "mean 'vllm_offline'"),
        (
            ("streaming", "peers", "frameworks", "kvpress", "adapter"),
            "kvpress",
            "kvpress.adapter.*mean 'kvpress_stream'",
        ),
        (("p1", "rounds", "rounds"), 10**9, "rounds.*10000"),
        (("c2c", "world"), {"records": 41}, "c2c.world.*as many keys"),
        (("c2c", "world"), {"shares": [0.5] * 4}, "do not add up to 1"),
        (("c2c", "sharer", "architecture", "num_heads"), 0, "sharer.architecture"),
        (("c2c", "receiver", "architecture", "max_positions"), 100, "has 100 positions"),
        (("c2c", "sharer", "architecture", "model_type"), "qwen3", "outliers.*cannot be injected"),
    ],
)
def test_what_the_library_does_not_know_is_refused_with_the_nearest(path, value, said):
    with pytest.raises(ConfigError, match=said):
        checked(changed(merged("tiny"), path, value))


LENGTHS = ("context", "contexts", "generation", "generations", "prompts", "prompt_tokens", "tokens")
LENGTHS += ("new_tokens", "train_tokens")
TINY = [
    (path, value)
    for path, value in leaves(merged("tiny"))
    if path[0] == "p1" and path[-1] in LENGTHS and path[1] != "architectures"
    # Elsewhere it is a number of prompts, not their lengths.
    if path[-1] != "prompts" or path[1] == "prefix"
]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(TINY), st.integers(8193, 10**6))
def test_any_length_beyond_the_models_positions_is_refused_by_section(leaf, tokens):
    path, value = leaf
    tokens = [tokens] if isinstance(value, list) else tokens
    if "points" in path and path[1] == "frameworks" and path[3] == 1:
        tokens += 40960  # a point of another shape
    with pytest.raises(ConfigError, match=rf"p1\.{path[1]}.*positions"):
        checked(changed(merged("tiny"), path, tokens))


def test_there_is_a_length_of_every_study_that_runs_sequences():
    assert {path[1] for path, _ in TINY} == {
        *("gates", "profile", "prefix", "speed", "pipeline", "roofline", "frameworks", "loading"),
        *("memory", "rounds", "lora", "rollout", "learner", "consistency"),
    }


NUMBERS = sorted(
    {
        path
        for scale in SCALES
        for path, v in leaves(merged(scale))
        if isinstance(v, int | float) and not isinstance(v, bool)
    },
    key=str,
)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(NUMBERS),
    st.sampled_from([-1, 10**400, math.inf, -math.inf, math.nan, True, "5", [], {}]),
)
def test_no_number_takes_what_is_none_or_absurd(path, value):
    for config in having(path):
        said = refusal(changed(config, path, value))
        if said is not None:
            assert str(path[0]) in said
            continue
        # Where a switch or a text is as good.
        assert value in (True, "5"), (path, value)
        assert {"architecture", "arguments", "policies"} & set(path), (path, value)


# Where nothing may stand: the default of a method, a policy or a framework; no limit; all there is.
OPTIONAL = {
    *("architecture", "arguments", "policies", "max_bytes", "last_layers", "limit", "items"),
    *("points", "near_phrasings"),
}


@pytest.mark.parametrize("path", NUMBERS, ids=lambda path: ".".join(map(str, path)))
def test_a_number_is_missing_only_where_it_has_a_default(path):
    said = refusal(changed(next(having(path)), path, None))
    if said is None:
        assert OPTIONAL & set(path)
    else:
        assert path[0] in said


names = st.sampled_from(
    ["naive", "prefix_only", "update_locality", "periodic_refresh", "updatable_kv", "keep_region"]
)
parameters = st.dictionaries(
    st.sampled_from(["freeze", "freeze_layers", "every", "rank", "share_prefix", "last_tokens"]),
    st.none() | st.booleans() | st.integers(-2, 10**10) | st.floats() | st.text(max_size=3),
    max_size=4,
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(names | st.text(max_size=5), parameters), min_size=1, max_size=3))
def test_any_list_of_policies_is_built_or_refused(drawn):
    specs = [{"name": name} | given for name, given in drawn]
    said = refusal(changed(merged("tiny"), ("p1", "policies"), specs))
    assert said is None or "p1.policies" in said


def test_a_local_models_own_positions_count(tmp_path):
    arch = Architecture.make("qwen3-0.6b")
    (tmp_path / "config.json").write_text(json.dumps(arch.to_hf() | {"max_position_embeddings": 9}))
    config = changed(
        merged("tiny"), ("models", "policy"), {"source": "local", "path": str(tmp_path)}
    )
    with pytest.raises(ConfigError, match=r"p1.profile.*policy has 9 positions"):
        checked(config)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"models.policy.path"):
        checked(config)


def test_an_adapter_is_a_file_of_the_adapters():
    config = merged("tiny")
    frameworks = [
        *config["p1"]["frameworks"]["peers"].values(),
        *config["streaming"]["peers"]["frameworks"].values(),
    ]
    for name in ADAPTERS:
        checked(changed(merged("tiny"), ("p1", "frameworks", "peers", "vllm", "adapter"), name))
    assert {framework["adapter"] for framework in frameworks} == set(ADAPTERS)


def test_planning_needs_no_torch():
    command = "import sys, ember.operations.settings; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
