"""Adapters made, aligned, timed and checked on a tiny model: the tables and what they must say."""

import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from ember.commands.main import main
from ember.lora.adapter import draw_adapter
from ember.lora.peft import load_adapter, save_adapter
from ember.model.checkpoint import load_decoder
from ember.records.tables import read_table, table_provenance, write_table
from ember.studies.measured import ProcessFailed
from ember.studies.p1.lora_adapters.make import make_adapters
from ember.studies.p1.lora_alignment import tables as lora
from ember.studies.p1.lora_alignment.measure import TABLES, align
from ember.studies.p1.lora_alignment.summary import summarise_alignment
from ember.studies.p1.lora_latency.measure import time_adapters, time_first
from ember.studies.p1.lora_latency.summary import summarise_latency
from ember.studies.p1.lora_latency.tables import (
    FIRST,
    LORA_EXACT,
    LORA_FIRST,
    LORA_LATENCY,
    LORA_LATENCY_SUMMARY,
    SWITCHES,
)
from ember.studies.p1.lora_logits.tables import LORA_LOGITS
from ember.studies.p1.workload.make import make_workload
from tests.lora.adapters import saved
from tests.tiny import wild

pytest.importorskip("peft")

RUN = {"device": "cpu", "dtype": "float32", "seed": 5}
MAKE = {
    "rank": 4,
    "alpha": 8.0,
    "b_std": 0.05,
    "train_steps": 6,
    "train_tokens": 16,
    "learning_rate": 1e-2,
}
ALIGN = {
    "dtypes": ["float32", "bfloat16"],
    "prompts": 3,
    "tokens": 12,
    "profiled": ["trained", "perturbed"],
    "layer_fractions": [0.0, 1.0],
    "freeze_fractions": [0.5, 2 / 3],
    "thresholds": [1e-9, 1e3],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from ember.model.checkpoint import save_decoder

    folder = tmp_path_factory.mktemp("lora") / "policy"
    return save_decoder(wild(), folder, weights="trained")


@pytest.fixture(scope="module")
def workload(model):
    return make_workload(model=model, documents=3, tokens=60, seed=1)


@pytest.fixture(scope="module")
def adapters(model, workload, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    made = make_adapters(model=model, workload=workload, adapters=folder, settings=MAKE, **RUN)
    assert made == ["init", "perturbed", "synthetic", "trained"]
    return folder


@pytest.fixture(scope="module")
def tables(model, workload, adapters):
    found = align(model=model, workload=workload, adapters=adapters, settings=ALIGN, **RUN)
    return SimpleNamespace(**dict(zip(TABLES, found, strict=True)))


def test_adapters_are_what_their_names_say(adapters):
    found = {name: load_adapter(adapters / name) for name in ("init", "perturbed", "trained")}
    assert all(not part.b.any() for part in found["init"].values())
    assert all(part.b.any() for part in found["perturbed"].values())
    assert all(part.b.any() for part in found["trained"].values())
    assert len(found["init"]) == 12


def test_random_weights_have_no_trained_adapter(tmp_path, workload):
    made = make_adapters(
        model=saved(wild(), tmp_path / "random"),
        workload=workload,
        adapters=tmp_path / "adapters",
        settings=MAKE,
        **RUN,
    )
    assert made == ["init", "perturbed", "synthetic"]


def test_float32_is_aligned_and_every_table_fits_its_schema(tables, tmp_path):
    single = [row for row in tables.cases if row["dtype"] == "float32"]
    assert len(single) == 4 * (4 * 2 + 3) * 2  # adapters x (targets x paths) x references
    assert max(row["delta_max_abs_diff"] for row in single) < 1e-4
    changed = [row["effect_max_abs"] for row in single if row["adapter"] != "init"]
    assert min(changed) > 1e-3
    assert all(row["effect_max_abs"] == 0 for row in single if row["adapter"] == "init")
    half = [row for row in tables.cases if row["dtype"] == "bfloat16"]
    assert all(min(row["errors"] + row["reference_errors"]) > 0 for row in half)
    for name in ("cases", "weights", "layers", "freeze", "blocks", "spot"):
        schema = getattr(lora, f"LORA_{name.upper()}")
        write_table(tmp_path / f"{name}.parquet", getattr(tables, name), schema)
    summary = summarise_alignment(tables.cases, seed=0, resamples=50)
    write_table(tmp_path / "summary.parquet", summary, lora.LORA_ALIGNMENT)
    assert all((row["error_ratio"] is None) == (row["dtype"] == "float32") for row in summary)


def test_merged_weights_are_rounded_to_nearest(tables):
    half = [row for row in tables.weights if row["dtype"] == "bfloat16"]
    assert max(row["error_max_ulp"] for row in half) < 0.51
    single = [row for row in tables.weights if row["dtype"] == "float32"]
    assert max(row["error_max_ulp"] for row in single) < 3
    moved = [row for row in tables.weights if row["adapter"] != "init"]
    assert min(row["delta_max_abs"] for row in moved) > 0
    assert {row["stage"] for row in tables.weights} == {"whole", "0", "1"}
    by_stage = {(row["stage"], row["layer"]) for row in tables.weights}
    assert by_stage == {("whole", 0), ("whole", 2), ("0", 0), ("1", 2)}


def test_the_residual_stream_is_the_sum_of_its_parts(tables):
    rows = [row for row in tables.blocks if row["block"] == "attn_residual"]
    for row in rows:
        bound = row["delta_input_max"] + row["delta_attn_max"] + row["delta_gap"]
        assert row["delta_residual_max"] <= bound + 1e-12
        assert row["delta_residual_max"] == row["delta_max_abs_diff"]
    first = [row for row in rows if row["layer"] == 0]
    assert all(row["delta_input_max"] == 0 for row in first), "the embedding is not adapted"


def test_layers_below_an_adapter_do_not_move(tables):
    assert all(row["prefix_effect_max"] == 0 for row in tables.freeze)
    assert {row["freeze"] for row in tables.freeze} == {0, 2}
    far = [row for row in tables.freeze if row["threshold"] == 1e3]
    assert all(row["first_layer"] is None for row in far)
    near = [row for row in tables.freeze if row["threshold"] == 1e-9]
    assert all(row["first_layer"] is not None for row in near if row["delta_max_abs_diff"] > 1e-9)


def test_operators_agree_on_the_same_input(tables):
    single = [row for row in tables.spot if row["dtype"] == "float32"]
    assert max(row["same_max_abs_diff"] for row in single) < 1e-5
    linear = [row for row in tables.spot if row["operator"] in ("gate", "up")]
    assert all(row["enters"] in ("input", "nowhere") for row in linear)


SWITCH = {
    "rank": 4,
    "alpha": 8.0,
    "b_std": 0.02,
    "keeps": ["device", "none"],
    "warmup": 0,
    "repeats": 3,
    "swaps": 5,
    "processes": 1,
}


def test_latency_of_every_switch(model, tmp_path):
    latency, exact = time_adapters(model=model, settings=SWITCH, **RUN)
    first = time_first(model=model, settings=SWITCH, **RUN)
    write_table(tmp_path / "l.parquet", latency, LORA_LATENCY)
    write_table(tmp_path / "e.parquet", exact, LORA_EXACT)
    write_table(tmp_path / "f.parquet", first, LORA_FIRST)
    summary = summarise_latency(latency, first)
    write_table(tmp_path / "s.parquet", summary, LORA_LATENCY_SUMMARY)
    steady = [row for row in summary if row["phase"] == "steady"]
    assert len(steady) == 3 * 4
    for row in steady:
        assert row["matrices"] == 12
        assert math.isclose(row["ratio_to_limit"], row["ms_median"] / row["limit_ms"])
        twice = row["implementation"] == "peft" and row["operation"] in ("replace", "reload")
        assert row["passes"] == (24 if twice else 12)
        assert row["ms_p10"] is None, "three runs have no percentiles"
    # q and o 32 x 32, k and v 16 x 32, three layers, read and written.
    assert {row["bytes"] for row in summary} == {2 * 4 * 3 * (2 * 1024 + 2 * 512)}
    kept = {row["keep"]: row for row in exact if row["implementation"] == "ember"}
    assert kept["device"]["exact"]
    assert kept["device"]["kept_bytes"] == kept["device"]["adapted_bytes"]
    assert kept["none"]["kept_bytes"] == 0


def test_implementations_take_turns_and_are_compared_within_a_round(model):
    latency, _ = time_adapters(model=model, settings=SWITCH, **RUN)
    places = {(row["implementation"], row["keep"], row["repeat"]): row["place"] for row in latency}
    for who in (("ember", "device"), ("ember", "none"), ("peft", "none")):
        assert sorted(places[*who, turn] for turn in range(3)) == [0, 1, 2]
    slow = [row | {"ms": 6.0} for row in latency if row["implementation"] == "peft"]
    fast = [row | {"ms": 2.0} for row in latency if row["keep"] == "device"]
    rows = summarise_latency([*slow, *fast], [])
    assert {row["speedup_over_peft"] for row in rows} == {1.0, 3.0}


def test_the_first_adapter_is_that_of_a_fresh_process(model):
    rows = time_first(model=model, settings=SWITCH, **RUN)
    for who in ("ember", "peft"):
        mine = {row["operation"]: row["ms"] for row in rows if row["implementation"] == who}
        assert {"import", "first", *SWITCHES} <= mine.keys()
        assert "compile" not in mine, "nothing is compiled on the CPU"
        assert math.isclose(mine["first"], sum(mine[part] for part in FIRST))
    assert {row["disk_cache"] for row in rows} == {"none"}


def test_a_process_that_fails_says_why(model, monkeypatch):
    import ember.studies.p1.lora_latency.measure as measure

    monkeypatch.setattr(measure, "_drawn", lambda *_: nullcontext([Path("/gone/0"), "/gone/1"]))
    with pytest.raises(ProcessFailed, match=r"ember's first adapter failed: .*/gone/0"):
        time_first(model=model, settings=SWITCH, **RUN)


def test_half_precision_has_errors_of_each_prompt_beside_pefts(tables):
    for rows in (tables.layers, tables.blocks):
        for row in rows:
            names = ("errors", "reference_errors", "base_errors", "base_reference_errors")
            wanted = 0 if row["dtype"] == "float32" else 3
            assert {len(row[name]) for name in names} == {wanted}
    last = [row for row in tables.layers if row["dtype"] == "bfloat16" and row["layer"] == 2]
    assert all(min(row["errors"] + row["reference_errors"]) > 0 for row in last)


def test_check_exports_logits_with_and_without_the_adapter(model, tmp_path, capsys):
    decoder = load_decoder(model)
    drawn = draw_adapter(decoder, rank=4, alpha=8, b_std=0.1, seed=3)
    folder = save_adapter(drawn, tmp_path / "a", arch=decoder.arch)
    command = ["check", "--model", str(model), "--adapter", str(folder), "--tokens", "1,2,3"]
    tables = {}
    for scale in ("1", "0"):
        out = tmp_path / f"{scale}.parquet"
        options = ["--lora-scale", scale, "--device", "cpu", "--positions", "all"]
        assert main([*command, *options, "--out", str(out)]) == 0
        tables[scale] = read_table(out, LORA_LOGITS)
    assert "largest change 0;" in capsys.readouterr().out
    assert len(tables["1"]) == 3 * 61
    assert (tables["0"]["base_logit"] == tables["0"]["adapted_logit"]).all()
    assert (tables["1"]["base_logit"] - tables["1"]["adapted_logit"]).abs().max() > 0.05
    assert table_provenance(tmp_path / "1.parquet")["params"]["lora_scale"] == 1.0


@pytest.mark.parametrize(
    ("tokens", "message"), [("1,99", "vocabulary ends at 60"), ("1,2", "is missing")]
)
def test_check_refuses_before_it_writes(tokens, message, model, tmp_path, capsys):
    folder = tmp_path / "a"
    if message != "is missing":
        decoder = load_decoder(model)
        save_adapter(draw_adapter(decoder, rank=2, alpha=2), folder, arch=decoder.arch)
    command = ["check", "--model", str(model), "--adapter", str(folder), "--tokens", tokens]
    assert main([*command, "--device", "cpu", "--out", str(tmp_path / "x.parquet")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x.parquet").exists()
