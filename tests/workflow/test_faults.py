"""Faults that need no cluster: full disk, replaced files, killed runs, two runs in one folder."""

import os
import select
import shutil
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ember.records.tables import read_table
from tests.workflow.conftest import SMOKE, Checkout

pytestmark = pytest.mark.slow

CORPUS = "results/smoke/corpora/long.parquet"
MODEL = "results/smoke/models/policy"
STATE = "results/smoke/states/policy.pt"
# One thread: two that wait for each other are slow on a busy machine.
TRAIN = (
    MODEL,
    *SMOKE,
    "models={policy: {training: {steps: 200, checkpoint_seconds: 0.2}}}",
    "resources={threads: 1}",
)


@pytest.fixture
def begin():
    """Start snakemake in the background, in a process group of its own."""
    runs = []

    def start(made: Checkout, *arguments: str) -> subprocess.Popen:
        runs.append(
            subprocess.Popen(
                [sys.executable, "-m", "snakemake", *arguments],
                cwd=made.path,
                env=made.environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )
        return runs[-1]

    yield start
    for run in runs:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
        run.stdout.close()


def until_saved(made: Checkout, run: subprocess.Popen) -> None:
    """Wait until the training has saved a state to resume from."""
    deadline = time.monotonic() + 300
    while not (made.path / STATE).exists() and run.poll() is None:
        assert time.monotonic() < deadline, "the training saves no state"
        select.select([], [], [], 0.05)
    assert run.poll() is None, run.stdout.read()[-3000:]


@pytest.fixture
def started(finished, tmp_path) -> Checkout:
    """A checkout with corpora and tokenizer, so that a training can start at once."""
    shutil.copytree(finished.path, tmp_path / "ember", symlinks=True)
    return Checkout(tmp_path / "ember")


@pytest.fixture
def small_disk(fresh):
    """results/smoke/corpora on a file system of its own, full but for a few kilobytes."""
    folder = (fresh.path / CORPUS).parent
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a small file system here: {done.stderr.strip()}")
    filler = folder / "filler"
    filler.write_bytes(b"x" * (8 * 2**20 - 16384))
    yield filler
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_named_and_the_next_run_finishes(fresh, small_disk):
    done = fresh.snakemake(CORPUS, *SMOKE, check=False)
    assert done.returncode != 0
    assert f"error: cannot write {CORPUS}: " in done.stdout
    assert "No space left on device" in done.stdout
    assert "free space" in done.stdout
    assert "Traceback" not in done.stdout
    assert os.listdir(small_disk.parent) == ["filler"], "nothing half-written stays"
    small_disk.unlink()
    fresh.snakemake(CORPUS, *SMOKE)
    assert len(read_table(fresh.path / CORPUS)) > 0


def foreign(path):
    pq.write_table(pa.table({"a": [1, 2, 3]}), path)


def of_another_schema(path):
    shutil.copy(path.parents[1] / "gates.parquet", path)


def damaged(path):
    content = bytearray(path.read_bytes())
    content[8] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("replace", [foreign, of_another_schema, damaged])
def test_a_replaced_table_stops_the_job_that_reads_it_and_the_next_run_repairs_it(started, replace):
    path = started.path / "results/smoke/p1/policies/rounds.parquet"
    products = ("results/p1_policies.parquet", "results/p1_fig3.png")
    before = read_table(path)
    replace(path)
    done = started.snakemake(*products, *SMOKE, check=False)
    assert done.returncode != 0
    name = path.relative_to(started.path).as_posix()
    assert f"error: {name}" in done.stdout
    assert (
        f"delete it and run `snakemake --profile local {name} --config scale=smoke`" in done.stdout
    )
    assert "Traceback" not in done.stdout
    path.unlink()
    started.snakemake(name, *SMOKE)
    assert read_table(path).equals(before)
    done = started.snakemake(*products, *SMOKE)
    assert "model_cost" in done.stdout, "what was made from it is made again"
    for product in products:
        assert (started.path / product).exists()


def test_a_killed_run_is_unlocked_and_goes_on(started, begin):
    run = begin(started, *TRAIN)
    until_saved(started, run)
    os.killpg(run.pid, signal.SIGKILL)  # scheduler and job, without a last word
    run.communicate()
    refused = started.snakemake(*TRAIN, check=False)
    assert refused.returncode != 0
    assert "--unlock" in refused.stdout
    started.snakemake("--unlock", *SMOKE)
    started.snakemake(*TRAIN)
    log = (started.path / "logs/smoke/train_model_policy.log").read_text()
    assert "resumed at step" in log
    assert (started.path / MODEL / "model.safetensors").exists()
    assert not (started.path / STATE).exists()


def test_a_second_run_in_one_folder_is_refused_and_the_first_is_not_disturbed(started, begin):
    first = begin(started, *TRAIN)
    until_saved(started, first)
    second = started.snakemake(*TRAIN, check=False)
    assert second.returncode != 0
    assert "Directory cannot be locked" in second.stdout
    assert first.poll() is None
    output, _ = first.communicate(timeout=600)
    assert first.returncode == 0, output[-3000:]
    assert (started.path / MODEL / "model.safetensors").exists()
