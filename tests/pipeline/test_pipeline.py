"""Two real processes: the one-device engine's tokens, and clear errors where one of them fails."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
import torch

from ember.backends.sampling import SamplingParams
from ember.engine.engine import Engine
from ember.engine.requests import BadPrompt
from ember.model.checkpoint import load_decoder
from ember.pipeline.pipeline import Pipeline, StageFailed, why_no_stages
from ember.pipeline.plan import BadSplit
from ember.pipeline.timeline import busy_ms
from tests.tiny import declared

LAYERS = 3
ONE = {"split": 1, "micro_batches": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline") / "model"
    return declared(
        folder, num_layers=LAYERS, vocab_size=97, max_positions=256, tie_embeddings=True
    )


@pytest.fixture(scope="module")
def pipeline(model):
    with Pipeline(model, splits=[1, 2], capacity=40, whole=True, timeout_s=60) as made:
        yield made


def prompts(lengths=(9, 9, 7, 9)):
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(97, (n,), generator=generator).tolist() for n in lengths]


def one_device(model, sampling, given):
    engine = Engine(load_decoder(model), capacity=40)
    return [list(c.tokens) for [c] in engine.generate(given, sampling)]


@pytest.mark.parametrize("split", [1, 2])
@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_tokens_are_those_of_one_device(pipeline, model, split, overlap, temperature):
    sampling = SamplingParams(max_tokens=6, temperature=temperature, seed=4)
    options = {"split": split, "micro_batches": 2, "chunks": 2, "overlap": overlap}
    run = pipeline.generate(prompts(), sampling, **options)
    assert run.tokens == one_device(model, sampling, prompts())
    assert run.forms == ("compiled", "compiled")
    assert all(value <= 0 for row in run.logprobs for value in row)


def test_a_stop_token_ends_its_row_only(pipeline, model):
    free = SamplingParams(max_tokens=8, temperature=1.0, seed=1)
    stop = one_device(model, free, prompts())[0][3]
    sampling = SamplingParams(max_tokens=8, temperature=1.0, seed=1, stop_token_ids=(stop,))
    run = pipeline.generate(prompts(), sampling, split=1, micro_batches=2)
    assert run.tokens == one_device(model, sampling, prompts())
    assert run.tokens[0][-1] == stop


def test_without_overlap_one_stage_works_at_a_time_and_events_fill_the_run(pipeline):
    sampling = SamplingParams(max_tokens=5)
    run = pipeline.generate(prompts((9,) * 4), sampling, split=1, micro_batches=4, overlap=False)
    work = sorted(
        (e.start_ms, e.end_ms) for e in run.events if e.kind in ("prefill", "decode", "sampling")
    )
    assert len(work) == 4 * 5 * 3  # of each unit: one in stage 0, one and a sampling in stage 1
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(work))
    assert 0 < busy_ms(run.events, 0) + busy_ms(run.events, 1) <= run.total_ms
    assert work[-1][1] <= run.total_ms


def test_with_overlap_a_stage_goes_on_before_its_neighbour_is_done(pipeline):
    """Stage 0 has sent micro-batch 1 before the tokens of micro-batch 0 are chosen, every time
    that it need not wait for them."""
    run = pipeline.generate(
        prompts((30, 30)), SamplingParams(max_tokens=4), split=2, micro_batches=2, chunks=3
    )
    waits = [e for e in run.events if e.stage == 0 and e.kind == "receive"]
    assert len(waits) == 2 * 3  # tokens of every step but the last; none for chunks
    second = [e for e in run.events if (e.stage, e.kind, e.micro_batch) == (0, "prefill", 1)]
    received = [e for e in waits if e.micro_batch == 0 and e.step == 0]
    assert second[-1].end_ms <= received[0].end_ms


def test_costs_of_all_parts_are_measured(pipeline):
    rows = pipeline.cost(rows=2, context=12, tokens=9, steps=2, repeats=2)
    for phase, more in (("prefill", set()), ("decode", {"call"})):
        parts = {row["part"] for row in rows if row["phase"] == phase}
        assert parts == {f"layer {i}" for i in range(LAYERS)} | {"embed", "head", "sample"} | more
    assert len(rows) == len({(r["phase"], r["part"], r["repeat"]) for r in rows})
    seconds = pipeline.ping((2, 32), (2,), count=5, repeats=3)
    assert len(seconds) == 3
    assert min(seconds) > 0


@pytest.mark.parametrize(
    ("given", "options", "error", "message"),
    [
        ([[1, 2]], {"split": 3}, BadSplit, "not made for a first stage of 3"),
        ([[]], {"split": 1}, BadPrompt, "a prompt is empty"),
        ([[1], [97]], {"split": 1}, BadPrompt, "a prompt has token ids outside"),
        ([[1] * 38], {"split": 1}, BadPrompt, "exceed the engine's capacity of 40"),
        ([[1, 2]], {"split": 1, "micro_batches": 2}, BadSplit, "1 sequences cannot make 2"),
    ],
)
def test_bad_requests_are_refused_and_the_pipeline_lives_on(
    pipeline, given, options, error, message
):
    options = {"micro_batches": 1} | options
    with pytest.raises(error, match=message):
        pipeline.generate(given, SamplingParams(max_tokens=3), **options)
    assert pipeline.generate([[1]], SamplingParams(max_tokens=1), split=1, micro_batches=1).tokens


def test_a_bad_split_is_refused_before_processes_start(model, monkeypatch):
    monkeypatch.setattr(Pipeline, "_launch", lambda self: pytest.fail("a process was started"))
    with pytest.raises(BadSplit, match="Choose 1 to 2"), Pipeline(model, splits=[3], capacity=8):
        pass


def test_one_gpu_is_not_enough(model, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert "two GPUs, 1 visible" in why_no_stages("cuda")
    with pytest.raises(StageFailed, match="two GPUs, 1 visible"):
        Pipeline(model, splits=[1], capacity=8, device="cuda")


def generate_for_ever(pipeline):
    while True:
        pipeline.generate([[1] * 9], SamplingParams(max_tokens=200), **ONE)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_stage_ends_the_run_at_once(model, rank):
    with Pipeline(model, splits=[1], capacity=240, timeout_s=120) as pipeline:
        processes = list(pipeline._processes)
        began = time.monotonic()
        killer = threading.Timer(0.05, os.kill, (processes[rank].pid, signal.SIGKILL))
        killer.start()
        with pytest.raises(StageFailed, match=f"stage {rank} was killed by signal 9"):
            generate_for_ever(pipeline)
    assert time.monotonic() - began < 30
    assert [process.poll() is not None for process in processes] == [True, True]


def test_a_stopped_stage_is_given_up_after_the_timeout(model):
    with Pipeline(model, splits=[1], capacity=40, timeout_s=60) as pipeline:
        processes = list(pipeline._processes)
        os.kill(processes[1].pid, signal.SIGSTOP)
        pipeline._timeout = 1.0
        with pytest.raises(StageFailed, match="gave no answer within 1 s"):
            pipeline.generate([[1, 2]], SamplingParams(max_tokens=2), **ONE)
    assert all(process.poll() is not None for process in processes)


def test_an_error_in_a_stage_is_told_with_its_cause(model, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((model / "config.json").read_text())
    with (
        pytest.raises(StageFailed, match=r"stage [01] failed: BadCheckpoint: .* holds no model"),
        Pipeline(broken, splits=[1], capacity=8, timeout_s=60),
    ):
        pass


ORPHANS = """
import sys, time
from ember.pipeline.pipeline import Pipeline
with Pipeline(sys.argv[1], splits=[1], capacity=8, timeout_s=60) as pipeline:
    print(*(process.pid for process in pipeline._processes), flush=True)
    time.sleep(600)
"""


def test_stages_end_with_the_process_that_started_them(model):
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHANS, str(model)], stdout=subprocess.PIPE, text=True
    )
    with parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        parent.kill()
    assert len(pids) == 2
    deadline = time.monotonic() + 20
    while any(map(runs, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(runs, pids))


def runs(pid: int) -> bool:
    """Whether a process is there and no zombie, which nobody may be there to bury."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
