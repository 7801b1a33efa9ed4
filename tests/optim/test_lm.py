"""Training: it learns, resumes bit for bit, and stops with a clear message."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.model.architecture import SIZES
from ember.model.checkpoint import random_decoder
from ember.model.families import FAMILIES
from ember.optim.lm import Recipe, Windows, evaluate, train
from ember.optim.loop import BadTraining, Diverged, Interrupted, state_key
from ember.optim.loss import next_token_loss
from tests.tiny import tiny

ARCH = tiny(
    num_layers=2,
    hidden_size=16,
    intermediate_size=32,
    num_heads=2,
    num_kv_heads=1,
    vocab_size=24,
    max_positions=64,
    tie_embeddings=True,
)
RECIPE = Recipe(
    steps=12,
    batch_size=2,
    sequence_length=16,
    learning_rate=5e-3,
    warmup_steps=2,
    validate_every=5,
    seed=1,
)
LONG = replace(RECIPE, steps=100_000)
# A text with structure: counting, with a random jump now and then.
STREAM = np.cumsum(np.random.default_rng(0).choice([1, 1, 1, 1, 7], size=2000)) % 24


def fresh():
    return random_decoder(ARCH, seed=0)


def weights(decoder) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in decoder.state_dict().items()}


def assert_bit_equal(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


class StopAfter:
    """A validation that sends this process a signal, as Ctrl-C would."""

    def __init__(self, number=signal.SIGINT):
        self.number, self.calls = number, 0

    def __call__(self, decoder) -> float:
        self.calls += 1
        if self.calls == 1:
            os.kill(os.getpid(), self.number)
        return 1.0


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_learns_the_structure(optimizer):
    recipe = replace(RECIPE, steps=150, batch_size=8, optimizer=optimizer, learning_rate=1e-2)
    decoder = fresh()
    rows = train(decoder, STREAM, recipe)
    # Uniform is ln 24 = 3.18; the jumps alone cost 0.50 nats.
    assert rows[0]["train_loss"] > 2
    assert 0.4 < rows[-1]["train_loss"] < 1.2
    assert rows[-1]["step"] == 150
    assert rows[-1]["tokens"] == recipe.tokens
    assert all(row["val_bits_per_byte"] is None for row in rows)


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_every_architecture_learns(model_type):
    """All of its parameters move, and the loss falls below what the counting alone needs."""
    sizes = {name: getattr(ARCH, name) for name in SIZES} | {"num_layers": 3, "num_kv_heads": 2}
    decoder = random_decoder(tiny(model_type, **sizes), seed=0)
    before = weights(decoder)
    recipe = replace(RECIPE, steps=60, batch_size=8, learning_rate=1e-2)
    rows = train(decoder, STREAM, recipe)
    assert rows[-1]["train_loss"] < 1.5
    for name, after in weights(decoder).items():
        assert not torch.equal(before[name], after), name


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, optimizer, number):
    recipe = replace(RECIPE, optimizer=optimizer)
    whole = fresh()
    log = train(whole, STREAM, recipe, validate=lambda _: 1.0)

    state = tmp_path / "below" / "state.pt"
    stopped = fresh()
    with pytest.raises(Interrupted, match=f"{number.name} after step 5 of 12"):
        train(stopped, STREAM, recipe, validate=StopAfter(number), state=state, key="k")
    assert state.is_file()
    resumed = fresh()
    rows = train(resumed, STREAM, recipe, validate=lambda _: 1.0, state=state, key="k")

    assert_bit_equal(weights(resumed), weights(whole))
    timeless = ("step", "tokens", "train_loss", "learning_rate", "val_bits_per_byte")
    assert [[row[name] for name in timeless] for row in rows] == [
        [row[name] for name in timeless] for row in log
    ]


class Reached(Exception):
    """Ends a training at the step of its first validation."""


def until(step: int, state=None) -> dict[str, torch.Tensor]:
    """Weights of the long recipe at a step."""

    def stop(_):
        raise Reached

    decoder = fresh()
    with pytest.raises(Reached):
        train(decoder, STREAM, replace(LONG, validate_every=step), validate=stop, state=state)
    return weights(decoder)


@pytest.mark.slow
def test_killed_process_resumes_bit_equal(tmp_path):
    """kill -9 amid training: the last periodic state is whole and leads to the same weights."""
    state = tmp_path / "state.pt"
    code = (
        "import sys; from pathlib import Path; from test_lm import *;"
        "train(fresh(), STREAM, LONG, state=Path(sys.argv[1]), checkpoint_seconds=0.0)"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(state)], env=os.environ | {"PYTHONPATH": path}
    )
    deadline = time.monotonic() + 120
    while not state.is_file() and process.poll() is None and time.monotonic() < deadline:
        threading.Event().wait(0.05)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    steps = torch.load(state, weights_only=True)["step"]
    assert 1 <= steps < LONG.steps
    assert_bit_equal(until(steps + 3, state), until(steps + 3))


def test_finished_state_trains_no_further(tmp_path):
    state = tmp_path / "state.pt"
    first, second = fresh(), fresh()
    rows = train(first, STREAM, RECIPE, state=state, key="k")
    again = train(second, STREAM, RECIPE, state=state, key="k")
    assert again == rows
    assert_bit_equal(weights(first), weights(second))


@pytest.mark.parametrize("content", ["other key", "cut", "foreign"])
def test_unusable_state_is_not_resumed(tmp_path, content, caplog):
    state = tmp_path / "state.pt"
    train(fresh(), STREAM, replace(RECIPE, steps=3), state=state, key="before")
    if content == "cut":
        state.write_bytes(state.read_bytes()[:500])
    elif content == "foreign":
        state.write_text("not a state")
    decoder, straight = fresh(), fresh()
    with caplog.at_level("INFO"):
        rows = train(decoder, STREAM, RECIPE, state=state, key="after")
    assert "starts anew" in caplog.text
    assert rows[-1]["step"] == RECIPE.steps
    train(straight, STREAM, RECIPE)
    assert_bit_equal(weights(decoder), weights(straight))


def test_key_changes_with_every_part():
    parts = {"recipe": RECIPE, "architecture": ARCH, "data": ["a", "b"], "code": "c"}
    keys = {state_key(**parts)}
    for change in (
        {"recipe": replace(RECIPE, learning_rate=1e-3)},
        {"architecture": replace(ARCH, rope_theta=5.0)},
        {"data": ["a", "c"]},
        {"code": "d"},
    ):
        keys.add(state_key(**parts | change))
    assert len(keys) == 5
    assert state_key(**parts) in keys


def test_divergence_stops_at_once_and_leaves_no_state(tmp_path):
    state = tmp_path / "state.pt"
    decoder = fresh()
    with torch.no_grad():
        decoder.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(Diverged, match=r"(?s)step 1 of 12: loss nan.*Lower training.learning_rate"):
        train(decoder, STREAM, RECIPE, state=state, key="k", checkpoint_seconds=0)
    assert not state.exists()


def test_signal_handlers_are_restored_and_threads_allowed():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    train(fresh(), STREAM, replace(RECIPE, steps=1))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    rows = []
    thread = threading.Thread(
        target=lambda: rows.extend(train(fresh(), STREAM, replace(RECIPE, steps=1)))
    )
    thread.start()
    thread.join()
    assert rows[-1]["step"] == 1


@settings(max_examples=30, deadline=None)
@given(st.integers(20, 400), st.integers(2, 9), st.integers(0, 5))
def test_an_epoch_reads_every_window_once(tokens, length, seed):
    stream = np.arange(tokens)
    windows = Windows(stream, length, seed)
    starts = windows.starts(0, windows.count)
    assert len(set(starts)) == windows.count
    assert set(np.diff(np.sort(starts))) <= {length}
    assert starts.min() < length
    assert starts.max() + length < tokens
    batch = windows.batch(0, windows.count)
    assert batch.shape == (windows.count, length + 1)
    # Out of order and again: a batch depends on its place alone.
    last = windows.count - 1
    assert np.array_equal(Windows(stream, length, seed).batch(last, 1)[0], batch[last])
    seen = windows.seen(windows.count)
    assert np.array_equal(seen, np.unique(batch))


def test_evaluation_is_the_loss_and_counts_its_context():
    decoder = fresh()
    stream = STREAM[:101].astype(np.int64)
    score = evaluate(decoder, stream, tokens=1000, length=20, batch_size=3)
    assert score.positions.tolist() == [list(range(s + 1, s + 21)) for s in range(0, 100, 20)]
    batch = torch.from_numpy(np.stack([stream[s : s + 21] for s in range(0, 100, 20)]))
    nats = next_token_loss(decoder, batch).item()
    assert -score.log2_probs.mean() * np.log(2) == pytest.approx(nats, rel=1e-5)
    one_byte_each = np.ones(24, np.int64)
    assert score.bits_per_byte(stream, one_byte_each) == pytest.approx(nats / np.log(2), rel=1e-5)

    overlapped = evaluate(decoder, stream, tokens=1000, length=20, batch_size=3, context=10)
    flat = overlapped.positions.reshape(-1)
    assert flat.min() == 11
    assert len(set(flat)) == len(flat)
    few = evaluate(decoder, stream, tokens=25, length=20, batch_size=3)
    assert few.positions.shape == (2, 20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "training.steps"),
        ({"learning_rate": 0.0}, "training.learning_rate"),
        ({"learning_rate": float("nan")}, "training.learning_rate"),
        ({"optimizer": "sgd"}, "muon or adamw"),
    ],
)
def test_bad_recipes_are_refused(change, message):
    with pytest.raises(BadTraining, match=message):
        replace(RECIPE, **change)


def test_too_little_text_is_explained():
    with pytest.raises(BadTraining, match="30 tokens, too few for sequences of 16"):
        train(fresh(), STREAM[:30], RECIPE)
    with pytest.raises(BadTraining, match="no held-out tokens"):
        evaluate(fresh(), STREAM[:1], tokens=10, length=4, batch_size=1)


def test_rate_warms_up_and_falls():
    recipe = replace(RECIPE, steps=100, warmup_steps=10, learning_rate=1.0)
    rates = [recipe.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == pytest.approx(0.05)


def test_a_start_token_opens_every_sequence():
    stream = np.arange(1, 400, dtype=np.int64)
    plain, started = (Windows(stream, 16, 3, start).batch(5, 4) for start in (None, 0))
    assert (started[:, 0] == 0).all()
    assert (started[:, 1:] == plain[:, 1:]).all()
