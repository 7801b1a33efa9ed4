"""Prompts of the shared-prefix workload share exactly the prefix asked for."""

import json
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.studies.p1.workload.make import (
    WorkloadTooSmall,
    make_workload,
    random_streams,
    read_workload,
    text_streams,
)


@pytest.fixture
def model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 97}))
    return tmp_path


def common(a, b):
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(map(len, (a, b)))
    )


@given(seed=st.integers(0, 1000), tokens=st.integers(2, 40), data=st.data())
@settings(max_examples=40, deadline=None)
def test_prompts_share_exactly_the_prefix(seed, tokens, data):
    prefix = data.draw(st.integers(0, tokens - 1))
    shared, own, _ = random_streams(50, 4, 48, seed)
    workload = read_workload(
        [{"document": d, "tokens": t} for d, t in [(-1, shared), *enumerate(own)]]
    )
    prompts = [workload.prompt(d, tokens, prefix) for d in range(4)]
    for prompt in prompts:
        assert len(prompt) == tokens
        assert common(prompt, shared.tolist()) == prefix
    for a, b in combinations(prompts, 2):
        assert common(a, b) >= prefix


def test_random_ids_follow_the_seed_and_the_vocabulary(model):
    rows = make_workload(model=model, documents=5, tokens=64, seed=1)
    again = make_workload(model=model, documents=5, tokens=64, seed=1)
    other = make_workload(model=model, documents=5, tokens=64, seed=2)
    assert rows == again
    assert rows != other
    assert [row["document"] for row in rows] == [-1, 0, 1, 2, 3, 4]
    ids = [t for row in rows for t in row["tokens"]]
    assert min(ids) >= 0
    assert max(ids) < 97
    workload = read_workload(rows)
    assert len({int(d[0]) for d in workload.documents}) == 5


def test_text_windows_do_not_overlap_and_start_differently():
    # Every hundredth token is 0, all others are unique: a window that starts with 0 is taken once.
    ids = [0 if i % 100 == 0 else i for i in range(1000)]
    encode = {"head": ids[:250], "tail": ids[250:]}.get
    shared, own, source = text_streams(["head", "tail"], encode, 5, 100)
    assert source == "corpus"
    assert shared.tolist() == ids[:100]
    assert len({int(stream[0]) for stream in own}) == 5
    starts = [int(stream[1]) - 1 for stream in own]
    assert [stream.tolist() for stream in own] == [ids[start : start + 100] for start in starts]
    assert starts[0] == 100
    assert all(b - a >= 100 for a, b in pairwise(starts))


def test_what_is_too_small_is_said():
    with pytest.raises(WorkloadTooSmall, match="max_bytes"):
        text_streams(["short"], lambda text: [1, 2, 3], 3, 100)
    shared, own, _ = random_streams(50, 2, 20, 0)
    workload = read_workload(
        [{"document": d, "tokens": t} for d, t in [(-1, shared), *enumerate(own)]]
    )
    with pytest.raises(WorkloadTooSmall, match="longer streams"):
        workload.prompt(0, 100, 10)
    with pytest.raises(WorkloadTooSmall, match="2 documents"):
        workload.prompt(2, 10, 5)
    with pytest.raises(ValueError, match="prefix"):
        workload.prompt(0, 10, 10)


def test_the_table_keeps_the_streams(model, tmp_path):
    from ember.records.tables import write_table
    from ember.studies.p1.workload.tables import WORKLOAD

    rows = make_workload(model=model, documents=2, tokens=16, seed=3)
    path = write_table(tmp_path / "workload.parquet", rows, WORKLOAD)
    stored, made = read_workload(path), read_workload(rows)
    assert np.array_equal(stored.shared, made.shared)
    assert all(map(np.array_equal, stored.documents, made.documents))
