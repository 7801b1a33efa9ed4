"""The configuration: the committed scales are valid, and mistakes are named."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.config.load import ConfigError, check_scale, json_schema, load, with_types
from tests.config.scales import CONFIG, SCALES, changed, having, leaves, merged


def test_there_are_four_scales():
    assert SCALES == ["gpu", "paper", "smoke", "tiny"]


@pytest.mark.parametrize("scale", SCALES)
def test_the_committed_scales_are_valid(scale):
    assert load(merged(scale)).scale == scale


@pytest.mark.parametrize("scale", SCALES)
def test_the_cost_model_finds_its_points_among_the_measured_ones(scale):
    p1 = load(merged(scale)).p1
    rounds, calls = (
        p1.rounds,
        {(p.context, p.generation, p.candidates, p.rows) for p in p1.rollout.points},
    )
    for point in rounds.points:
        lengths = (point.context, point.generation)
        assert {(*lengths, rounds.candidates, rows) for rows in rounds.rows} <= calls
        assert (*lengths, 1, rounds.independent_rows) in calls
        assert point.context in {update.context for update in p1.learner.points}
        assert point.context in p1.profile.contexts
        assert point.generation in p1.profile.generations


def test_an_unknown_scale_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'paper'"):
        check_scale("papr", CONFIG / "scale")


def keys_of(node, path=()):
    if isinstance(node, dict):
        for key, value in node.items():
            yield (*path, key)
            yield from keys_of(value, (*path, key))


# Of corpora, models and frameworks users choose the names.
FREE = (
    ("corpora",),
    ("models",),
    ("p1", "frameworks", "peers"),
    ("streaming", "peers", "frameworks"),
    # Fields of an architecture, which the library's checks know.
    ("c2c", "sharer", "architecture"),
    ("c2c", "receiver", "architecture"),
    ("lowbit", "whoami", "architecture"),
)
KEYS = [p for p in keys_of(merged("tiny")) if not any(p[: len(free)] == free for free in FREE)]


@settings(max_examples=40, deadline=None)
@given(path=st.sampled_from(KEYS), where=st.integers(0, 30))
def test_any_key_with_a_letter_too_many_is_refused_by_name(path, where):
    config = merged("tiny")
    node = config
    for key in path[:-1]:
        node = node[key]
    place = where % (len(path[-1]) + 1)
    wrong = path[-1][:place] + "q" + path[-1][place:]
    node[wrong] = node.pop(path[-1])
    with pytest.raises(ConfigError) as caught:
        load(config)
    assert f"unknown key {'.'.join((*path[:-1], wrong))!r}" in str(caught.value)
    assert f"Did you mean {path[-1]!r}" in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("seed",), -1, "greater than or equal to 0"),
        (("seed",), "5", "valid integer"),
        (("p1", "profile", "contexts"), 512, "valid list"),
        (("p1", "prefix", "prefix_fractions"), [1.0], "less than 1"),
        (("p1", "rounds", "points"), [{"context": 8, "generation": 2, "prefix": 8}], "below"),
        (("models", "policy"), {"source": "local"}, "needs path"),
        (("models", "policy"), {"source": "random"}, "needs a shape"),
        (("corpora", "long"), {"source": "files"}, "needs paths"),
        (("p1", "corpus"), "lnog", "p1.corpus.*'lnog'. Did you mean 'long'"),
        (("tokenizer", "corpora"), ["lnog"], "corpora.0.*'lnog'. Did you mean 'long'"),
        (("p1", "model"), "polcy", "p1.model.*'polcy'. Did you mean 'policy'"),
        (("p1", "profile", "contexts"), [64, 512, 64], "64 stands twice"),
        (("p1", "frameworks", "peers", "vllm", "environment"), {"PATH": [1]}, "environment.PATH"),
        (
            ("p1", "frameworks", "points", 0, "loop"),
            {"prompts": 8, "candidates": 8, "fewer": {"vlm": 1}},
            "point policy-512-128: 'vlm' is not one of ember",
        ),
    ],
)
def test_an_ill_typed_or_senseless_value_is_refused(path, value, said):
    with pytest.raises(ConfigError, match=said):
        load(changed(merged("tiny"), path, value))


def test_the_message_names_the_file_of_the_mistake():
    sources = [("config/config.yaml", {"seed": 1}), ("config/scale/tiny.yaml", {"seed": "x"})]
    with pytest.raises(ConfigError, match=r"in config/scale/tiny\.yaml"):
        load(merged("tiny") | {"seed": "x"}, sources)


def test_nested_values_of_the_command_line_are_typed():
    given = {"p1": {"profile": {"repeats": "3", "contexts": ["512"]}}, "device": "cuda"}
    over = merged("tiny")
    over["p1"]["profile"] |= given["p1"]["profile"]
    config = load(with_types(over, given))
    assert config.p1.profile.repeats == 3
    assert config.p1.profile.contexts == [512]
    with pytest.raises(ConfigError, match="repeats"):
        load(with_types(over, {"p1": {"profile": {"repeats": "three"}}}))


VALUES = [leaf for scale in SCALES for leaf in leaves(merged(scale))]
LISTS = sorted({path for path, value in VALUES if isinstance(value, list)}, key=str)
# Here an empty list says something: all frameworks, no points beside C2C at FP16.
MAY_BE_EMPTY = {("p1", "frameworks", "points", "frameworks"), ("c2c", "real", "grids")}


@pytest.mark.parametrize("path", LISTS, ids=lambda path: ".".join(map(str, path)))
def test_a_list_without_anything_is_refused_by_name(path):
    for config in having(path):
        emptied = changed(config, path, [])
        if (*path[:3], *path[4:]) in MAY_BE_EMPTY or path in MAY_BE_EMPTY:
            load(emptied)
            continue
        with pytest.raises(ConfigError, match=".".join(map(str, path)).replace("[", "")):
            load(emptied)


@pytest.mark.parametrize("section", ["corpora", "models"])
def test_a_section_without_anything_is_refused_by_name(section):
    with pytest.raises(ConfigError, match=section):
        load(merged("tiny") | {section: {}})


def test_no_list_of_the_schema_may_be_empty_unless_that_is_its_default():
    sections = json.loads(json_schema())["$defs"]
    lists = {
        (section, key): field
        for section, model in sections.items()
        for key, field in model["properties"].items()
        if field.get("type") == "array"
    }
    assert len(lists) > 20
    assert all("minItems" in field or field["default"] == [] for field in lists.values())


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=70) | st.from_regex(r"[a-z0-9._-]{1,66}", fullmatch=True))
def test_a_name_of_a_model_or_corpus_can_stand_in_a_path(name):
    plain = set("abcdefghijklmnopqrstuvwxyz0123456789._-")
    fine = 0 < len(name) <= 64 and set(name.lower()) <= plain and name[0] not in "._-"
    for section in ("models", "corpora"):
        config = merged("tiny")
        config[section][name] = next(iter(config[section].values()))
        if fine:
            load(config)
            continue
        with pytest.raises(ConfigError, match="cannot be a name"):
            load(config)
