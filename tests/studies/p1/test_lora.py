"""Adapters made, aligned, timed and checked on a tiny model: the tables and what they must say."""

import math

import pytest

from ember.commands.main import main
from ember.lora.adapter import draw_adapter
from ember.lora.peft import load_adapter, save_adapter
from ember.model.checkpoint import load_decoder
from ember.records.tables import read_table, table_provenance, write_table
from ember.studies.p1.lora_adapters.make import make_adapters
from ember.studies.p1.lora_alignment import tables as lora
from ember.studies.p1.lora_alignment.measure import align
from ember.studies.p1.lora_alignment.summary import summarise_alignment
from ember.studies.p1.lora_latency.measure import time_adapters
from ember.studies.p1.lora_latency.summary import summarise_latency
from ember.studies.p1.lora_latency.tables import LORA_EXACT, LORA_LATENCY, LORA_LATENCY_SUMMARY
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
    return align(model=model, workload=workload, adapters=adapters, settings=ALIGN, **RUN)


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


def test_latency_of_every_switch(model, tmp_path):
    settings = {
        "rank": 4,
        "alpha": 8.0,
        "b_std": 0.02,
        "keeps": ["device", "none"],
        "warmup": 0,
        "repeats": 2,
        "swaps": 5,
    }
    latency, exact = time_adapters(model=model, settings=settings, **RUN)
    write_table(tmp_path / "l.parquet", latency, LORA_LATENCY)
    write_table(tmp_path / "e.parquet", exact, LORA_EXACT)
    summary = summarise_latency(latency)
    write_table(tmp_path / "s.parquet", summary, LORA_LATENCY_SUMMARY)
    assert len(summary) == 3 * 4 * 2
    for row in summary:
        assert row["matrices"] == 12
        assert math.isclose(row["ratio_to_limit"], row["ms_median"] / row["limit_ms"])
        twice = row["implementation"] == "peft" and row["operation"] in ("replace", "reload")
        assert row["passes"] == (24 if twice else 12)
    # q and o 32 x 32, k and v 16 x 32, three layers, read and written.
    assert {row["bytes"] for row in summary} == {2 * 4 * 3 * (2 * 1024 + 2 * 512)}
    kept = {row["keep"]: row for row in exact if row["implementation"] == "ember"}
    assert kept["device"]["exact"]
    assert kept["device"]["kept_bytes"] == kept["device"]["adapted_bytes"]
    assert kept["none"]["kept_bytes"] == 0


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
