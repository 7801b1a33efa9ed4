"""Tables of decoding against the read bandwidth; the kernels' own times need a GPU."""

import pytest

from ember.backends.sampling import SamplingParams
from ember.measure import roofline
from ember.model.architecture import Architecture
from ember.model.folder import read_architecture
from ember.records.tables import read_table, write_table
from ember.studies.p1.roofline.figure import draw
from ember.studies.p1.roofline.measure import _distinct, describe, measure_decode
from ember.studies.p1.roofline.summary import summarise_roofline
from ember.studies.p1.roofline.tables import (
    DECODE_KERNELS,
    DECODE_ROOFLINE,
    ROOFLINE,
)
from ember.studies.shared.models.fetch import fetch_model
from tests.drawn import covered
from tests.rows import frame

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "max_positions": 64,
}


@pytest.fixture
def model(tmp_path):
    settings = {"source": "random", "preset": "qwen3-0.6b", "architecture": SIZES}
    fetch_model(settings, tmp_path / "model", seed=0)
    return tmp_path / "model"


@pytest.mark.parametrize(("kind", "cache"), [("cache", 2**30), ("memory", 16), ("memory", None)])
def test_rows_fit_their_schemas_and_agree_with_themselves(
    model, tmp_path, monkeypatch, kind, cache
):
    monkeypatch.setattr(roofline, "last_cache_bytes", lambda device: cache)
    decode, kernels = measure_decode(
        model=model,
        contexts=[16, 24],
        rows=[1, 2, 3],
        new_tokens=4,
        samplings=[{}, {"temperature": 0.7, "top_p": 0.9}],
        warmup=0,
        repeats=2,
        device="cpu",
        dtype="float32",
        seed=0,
    )
    write_table(tmp_path / "d.parquet", decode, DECODE_ROOFLINE, {})
    write_table(tmp_path / "k.parquet", kernels, DECODE_KERNELS, {})
    assert {(row["status"], row["us"]) for row in kernels} == {("skipped", None)}
    assert all("no GPU" in row["reason"] for row in kernels)
    # Kernels at 3 x 2 samplings and 3 in the other context, plain operators at 2: each twice.
    assert len(decode) == 2 * (6 + 3 + 2)
    assert {r["rows"] for r in decode if r["operators"] == "plain"} == {1, 3}
    arch: Architecture = read_architecture(model)
    for row in decode:
        assert row["weight_bytes"] == 4 * arch.parameter_count()
        tokens = row["context"] + row["rows"] * 2
        assert row["kv_bytes"] == tokens * arch.kv_bytes_per_token(4)
        step = row["step_ms"] + row["sampling_ms"]
        assert row["limit_kind"] == kind
        if kind == "cache":
            assert (row["limit_ms"], row["share"]) == (None, None)
        else:
            assert row["share"] == pytest.approx(row["limit_ms"] / step)
        assert row["decode_tokens_per_s"] == pytest.approx(row["rows"] / step * 1e3)
    read = read_table(tmp_path / "d.parquet", DECODE_ROOFLINE)
    assert sorted(read["sampling"].unique()) == ["greedy", "temperature=0.7, top_p=0.9"]
    rows = summarise_roofline(tmp_path / "d.parquet")
    write_table(tmp_path / "r.parquet", rows, ROOFLINE, {})
    assert len(rows) == 6 + 3 + 2
    for row in rows:
        speed = "decode_tokens_per_s"
        assert row["n"] == 2
        assert row[f"{speed}_min"] <= row[f"{speed}_median"] <= row[f"{speed}_max"]
        compared = (row["context"], row["sampling"]) == (16, "greedy") and row["rows"] != 2
        assert row["first_share"] == (0.5 if compared else None), "each goes first as often"
        assert (row["speedup"] is not None) == compared
        if kind == "memory":
            assert row["limit_tokens_per_s"] > row[f"{speed}_median"]
            assert row["share_min"] <= row["share_median"] <= row["share_max"]
    figure, caption = draw(
        read_table(tmp_path / "r.parquet", ROOFLINE),
        read_table(tmp_path / "k.parquet", DECODE_KERNELS),
        "smoke",
    )
    assert len(figure.axes) == 1
    fastest = next(r for r in rows if r["operators"] == "kernels" and r["rows"] == 3)
    assert f"{fastest['decode_tokens_per_s_median']:.4g} tokens/s with 3" in caption
    assert ("no limit is drawn" in caption) == (kind == "cache")
    assert ("share" in figure.axes[0].get_ylabel()) == (kind == "memory")


@pytest.mark.parametrize("plain", [0.09, 0.5, 0.95])
def test_the_legend_stands_on_no_curve(plain):
    shares = {"kernels": (0.87, 0.73, 0.72, 0.61), "plain": (plain, plain, plain, plain - 0.02)}
    rows = [
        {"operators": operators, "rows": 2**i, "context": 2048, "limit_kind": "memory", "n": 4}
        | {f"share_{end}": share for end in ("median", "min", "max")}
        for operators, found in shares.items()
        for i, share in enumerate(found)
    ]
    figure, _ = draw(frame(ROOFLINE, rows), frame(DECODE_KERNELS, []), "tiny")
    assert not covered(figure.axes[0])


def test_a_sampling_is_described_by_what_is_on():
    assert describe(SamplingParams()) == "greedy"
    cut = SamplingParams(temperature=0.7, top_k=50, min_p=0.0)
    assert describe(cut) == "temperature=0.7, top_k=50"


def test_kernels_whose_names_coincide_are_told_apart():
    rows = [{"kernel": "a"}, {"kernel": "b"}, {"kernel": "a"}]
    assert [row["kernel"] for row in _distinct(rows)] == ["a", "b", "a (2)"]
