"""A LoRA update on completions: its rows, what sharing prompts gains, and that it learns."""

import pytest
import torch

from ember.measure.cost import prefill_operations, update_operations
from ember.model.checkpoint import load_decoder
from ember.records.tables import write_table
from ember.studies.p1.learner.measure import Learner, Update, micro_batch, time_updates
from ember.studies.p1.learner.summary import summarise_updates
from ember.studies.p1.learner.tables import LEARNER, LEARNER_SPEED
from ember.studies.p1.workload.make import make_workload, read_workload
from tests.rows import example
from tests.tiny import tiny

POINT = {"prompts": 2, "candidates": 3, "context": 12, "generation": 5}


@pytest.fixture(scope="module")
def workload(random_model):
    return make_workload(model=random_model, documents=3, tokens=12, seed=0)


def test_every_update_is_a_row_and_both_forms_have_the_same_loss(random_model, workload, tmp_path):
    settings = {"frozen_fractions": [0.0, 0.5], "learning_rate": 1e-3, "rank": 2, "alpha": 4.0}
    settings |= {"warmup": 1, "repeats": 2, "device": "cpu", "dtype": "float32", "seed": 0}
    rows = time_updates(model=random_model, workload=workload, points=[POINT], **settings)
    write_table(tmp_path / "learner.parquet", rows, LEARNER)
    assert len(rows) == 2 * 2 * 2
    tokens = {row["form"]: row["tokens"] for row in rows}
    assert tokens == {"independent": 6 * (11 + 5), "shared_prompt": 2 * 11 + 6 * 5}
    for row in rows:
        assert row["point"] == "2x3, 12/5"
        assert row["tflops"] == pytest.approx(row["operations"] / row["ms"] / 1e9)
        assert row["share"] == pytest.approx(row["tflops"] / row["matmul_tflops"])
        assert row["peak_gb"] is None
        assert 3 < row["loss"] < 7  # about log(97)
    summary = summarise_updates(rows)
    write_table(tmp_path / "speed.parquet", summary, LEARNER_SPEED)
    assert {(row["form"], row["frozen_layers"], row["n"]) for row in summary} == {
        (form, frozen, 2) for form in tokens for frozen in (0, 1)
    }


def test_forms_agree_and_only_b_of_the_layers_above_learns(random_model, workload):
    losses = {}
    for form in ("independent", "shared_prompt"):
        decoder = load_decoder(random_model).requires_grad_(False)
        learner = Learner(decoder, [1], 2, 4.0, 1e-2, seed=0)
        update = Update(**POINT, form=form, frozen_layers=1)
        batch = micro_batch(read_workload(workload), update, "cpu")
        before = learner.adapter(1)
        losses[form] = [learner.step(update, *batch).item() for _ in range(5)]
        after = learner.adapter(1)
        assert {layer for layer, _ in after} == {1}
        assert all(torch.equal(after[key].a, before[key].a) for key in after)
        assert all(not torch.equal(after[key].b, before[key].b) for key in after)
    assert losses["shared_prompt"] == pytest.approx(losses["independent"], abs=1e-5)
    assert losses["independent"][-1] < losses["independent"][0]


def test_sharing_is_compared_within_point_and_frozen_part():
    rows = [
        example(LEARNER, point=point, form=form, frozen_layers=frozen, ms=ms, tokens=tokens)
        for point, frozen, form, ms, tokens in [
            ("a", 0, "independent", 10.0, 80),
            ("a", 0, "shared_prompt", 2.0, 20),
            ("a", 1, "independent", 8.0, 80),
            ("a", 1, "shared_prompt", 4.0, 20),
        ]
    ]
    found = {(row["frozen_layers"], row["form"]): row for row in summarise_updates(rows)}
    assert [found[n, "shared_prompt"]["speedup"] for n in (0, 1)] == [5.0, 2.0]
    assert found[0, "independent"]["speedup"] == 1.0
    assert found[1, "shared_prompt"]["token_ratio"] == 4.0


def test_operations_of_an_update():
    arch = tiny()
    forward = prefill_operations(arch, 20)  # without the head, the last layer for one token
    head = arch.vocab_size * arch.hidden_size
    whole = update_operations(arch, [(1, 20, 0, 1)])
    assert whole.matrices == pytest.approx(3 * forward.matrices + 4 * head)
    assert whole.attention == pytest.approx(4 * forward.attention)
    # Tokens after a cache do the rest of the work, and rows count each.
    parts = update_operations(arch, [(1, 15, 0, 1), (1, 5, 15, 5)])
    alone = update_operations(arch, [(1, 20, 0, 5)])
    extra = (
        update_operations(arch, [(1, 15, 0, 1)]).total
        - update_operations(arch, [(1, 15, 0, 0)]).total
    )
    assert parts.total == pytest.approx(alone.total + extra - 4 * head)
    assert update_operations(arch, [(3, 20, 0, 5)]).total == pytest.approx(3 * alone.total)
    # A frozen layer keeps a third of its products and a quarter of its attention.
    frozen = update_operations(arch, [(1, 20, 0, 5)], arch.num_layers - 1)
    assert frozen.matrices < alone.matrices / 1.5
    assert frozen.attention < alone.attention / 1.5
