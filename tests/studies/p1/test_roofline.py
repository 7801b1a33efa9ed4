"""Tables of decoding against the read bandwidth; the kernels' own times need a GPU."""

import pytest

from ember.backends.sampling import SamplingParams
from ember.model.architecture import Architecture
from ember.model.folder import read_architecture
from ember.records.tables import read_table, write_table
from ember.studies.p1.roofline.figure import draw
from ember.studies.p1.roofline.measure import _distinct, describe, measure_decode
from ember.studies.p1.roofline.summary import summarise_roofline
from ember.studies.p1.roofline.tables import (
    DECODE_KERNELS,
    DECODE_ROOFLINE,
    PREFILL_TIMES,
    ROOFLINE,
)
from ember.studies.shared.models.fetch import fetch_model

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


def test_rows_fit_their_schemas_and_agree_with_themselves(model, tmp_path):
    decode, kernels, prefills = measure_decode(
        model=model,
        contexts=[16],
        rows=[1, 2],
        new_tokens=4,
        samplings=[{}, {"temperature": 0.7, "top_p": 0.9}],
        warmup=0,
        repeats=2,
        device="cpu",
        dtype="float32",
        seed=0,
    )
    write_table(tmp_path / "d.parquet", decode, DECODE_ROOFLINE, {})
    write_table(tmp_path / "p.parquet", prefills, PREFILL_TIMES, {})
    write_table(tmp_path / "k.parquet", kernels, DECODE_KERNELS, {})
    assert {(row["status"], row["us"]) for row in kernels} == {("skipped", None)}
    assert all("no GPU" in row["reason"] for row in kernels)
    assert len(decode) == 2 * 2 * 2 * 2
    assert len(prefills) == 2 * 2
    arch: Architecture = read_architecture(model)
    for row in decode:
        assert row["weight_bytes"] == 4 * arch.parameter_count()
        tokens = 16 + row["rows"] * 2
        assert row["kv_bytes"] == tokens * arch.kv_bytes_per_token(4)
        step = row["step_ms"] + row["sampling_ms"]
        assert row["share"] == pytest.approx(row["limit_ms"] / step)
        assert row["decode_tokens_per_s"] == pytest.approx(row["rows"] / step * 1e3)
    read = read_table(tmp_path / "d.parquet", DECODE_ROOFLINE)
    assert sorted(read["sampling"].unique()) == ["greedy", "temperature=0.7, top_p=0.9"]
    rows = summarise_roofline(tmp_path / "d.parquet")
    write_table(tmp_path / "r.parquet", rows, ROOFLINE, {})
    assert len(rows) == 2 * 2 * 2
    for row in rows:
        assert row["n"] == 2
        assert row["limit_tokens_per_s"] > row["decode_tokens_per_s"]
        assert row["share_min"] <= row["share"] <= row["share_max"]
    figure, caption = draw(
        read_table(tmp_path / "r.parquet", ROOFLINE),
        read_table(tmp_path / "k.parquet", DECODE_KERNELS),
        "smoke",
    )
    assert len(figure.axes) == 2
    fastest = next(r for r in rows if r["operators"] == "kernels" and r["rows"] == 2)
    assert f"{fastest['decode_tokens_per_s']:.4g} with 2" in caption


def test_a_sampling_is_described_by_what_is_on():
    assert describe(SamplingParams()) == "greedy"
    cut = SamplingParams(temperature=0.7, top_k=50, min_p=0.0)
    assert describe(cut) == "temperature=0.7, top_k=50"


def test_kernels_whose_names_coincide_are_told_apart():
    rows = [{"kernel": "a"}, {"kernel": "b"}, {"kernel": "a"}]
    assert [row["kernel"] for row in _distinct(rows)] == ["a", "b", "a (2)"]
