"""A running cluster, a workflow that has done the cheap part, and what tests do to its jobs."""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ember.records.tables import read_rows
from tests.workflow.conftest import ROOT, Checkout, checkout

CLUSTER = ROOT / "tests" / "slurm" / "cluster.sh"
ALIVE = ("PENDING", "RUNNING", "COMPLETING", "SUSPENDED")
PATIENCE = 300  # seconds; the machine may be busy

# Status checks as close as the executor allows: it waits ten seconds longer after each idle one.
PROFILE = (
    *("--profile", "slurm", "--latency-wait", "20"),
    *("--slurm-init-seconds-before-status-checks", "1", "--seconds-between-status-checks", "1"),
)
SWEEP = "results/smoke/p1/prefix/runs.parquet"
MODEL = "results/smoke/models/policy"
STATE = "results/smoke/states/policy.pt"
# Long enough to be hit, saved often enough to resume from where it was hit.
TRAINING = "models={policy: {training: {steps: 100, checkpoint_seconds: 0.2}}}"


def settings(*given: str) -> tuple[str, ...]:
    """The end of a command line: `--config` takes all words that follow."""
    # One thread: two that wait for each other are slow on a busy machine.
    return ("--config", "scale=smoke", "resources={threads: 1}", *given)


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="session", autouse=True)
def cluster():
    """The cluster of cluster.sh. Skips where none runs, unless EMBER_SLURM=1 asks for one."""
    done = subprocess.run([CLUSTER, "status"], capture_output=True, text=True)
    if done.returncode and os.environ.get("EMBER_SLURM") == "1":
        pytest.fail(f"EMBER_SLURM=1, but no cluster runs here: {done.stderr}")
    if done.returncode:
        pytest.skip("no SLURM cluster here: tests/slurm/cluster.sh start, or make test-slurm")


@pytest.fixture(autouse=True)
def clean_cluster(cluster, tmp_path):
    """The node in service before a test, and none of the test's jobs in the queue after it."""
    subprocess.run([CLUSTER, "node", "up"], check=True, capture_output=True)
    yield

    def left():
        mine = [job for job in all_jobs() if Path(job["WorkDir"]).is_relative_to(tmp_path)]
        return [job["JobId"] for job in mine if job["JobState"] in ALIVE]

    if numbers := left():
        subprocess.run(["scancel", *numbers], check=True)
        until(lambda: not left(), "the test's jobs are gone")


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Checkout:
    """A checkout with what a training reads, made without SLURM."""
    made = checkout(tmp_path_factory.mktemp("slurm") / "base")
    made.snakemake("results/smoke/tokenizer", "--profile", "local", *settings())
    return made


@pytest.fixture
def swept(base, tmp_path) -> Checkout:
    """A checkout in which the prefix sweep has run without SLURM: model, gates and workload."""
    made = copied(base, tmp_path / "ember")
    made.snakemake(SWEEP, "--profile", "local", *settings())
    return made


@pytest.fixture(scope="session")
def undisturbed(base, tmp_path_factory) -> dict:
    """Content of the longer training when nothing goes wrong."""
    made = copied(base, tmp_path_factory.mktemp("slurm") / "undisturbed")
    made.snakemake(MODEL, "--profile", "local", *settings(TRAINING))
    return trained(made)


@pytest.fixture
def work(base, tmp_path) -> Checkout:
    """A copy of `base` that a test may wreck."""
    return copied(base, tmp_path / "ember")


def copied(source: Checkout, path: Path) -> Checkout:
    shutil.copytree(source.path, path, symlinks=True)
    return Checkout(path)


def trained(made: Checkout) -> dict:
    """What must not depend on interruptions: the weights, and all on the card but times."""
    weights = (made.path / MODEL / "model.safetensors").read_bytes()
    card = {
        (row["metric"], row["split"]): row["value"]
        for row in read_rows(made.path / "results/smoke/cards/policy.parquet")
        if not row["metric"].startswith("training_")
    }
    assert len(card) >= 10
    return card | {"weights": hashlib.sha256(weights).hexdigest()}


class Run:
    """A workflow started in the background through SLURM."""

    def __init__(self, made: Checkout, *arguments: str):
        self.made = made
        self.log = made.path / "run.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "snakemake", *arguments],
                cwd=made.path,
                env=made.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # A test run in the background ignores Ctrl-C; what it starts must not.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def output(self) -> str:
        return self.log.read_text()

    def until(self, condition, what: str):
        """Wait until the condition holds while the workflow runs."""

        def holds():
            found = condition()
            if not found and self.process.poll() is not None:
                pytest.fail(f"the workflow ended before {what}:\n{self.output()[-6000:]}")
            return found

        return until(holds, what, self.output)

    def succeeds(self) -> str:
        """Wait for the end, which must be a good one, and return the output."""
        self.process.wait(PATIENCE)
        assert self.process.returncode == 0, self.output()[-8000:]
        return self.output()

    def fails(self) -> str:
        self.process.wait(PATIENCE)
        assert self.process.returncode != 0, self.output()[-8000:]
        return self.output()

    def jobs(self, rule: str = "") -> list[dict]:
        """Jobs of this workflow that SLURM knows, oldest first."""
        return [
            job
            for job in all_jobs()
            if job["WorkDir"] == str(self.made.path) and job["Comment"].startswith(f"rule_{rule}")
        ]

    def running(self, rule: str) -> dict:
        """The running job of a rule; waits for it."""
        return self.until(
            lambda: next((j for j in self.jobs(rule) if j["JobState"] == "RUNNING"), None),
            f"{rule} runs",
        )


@pytest.fixture
def start():
    """Start workflows; whatever still runs at the end is killed."""
    runs = []

    def begin(made: Checkout, *arguments: str) -> Run:
        runs.append(Run(made, *arguments))
        return runs[-1]

    yield begin
    for run in runs:
        if run.process.poll() is None:
            os.killpg(run.process.pid, signal.SIGKILL)
            run.process.wait()


def slurm(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def all_jobs() -> list[dict]:
    """What `scontrol show job` says, as dictionaries; Comment is empty where none was given."""
    lines = slurm("scontrol", "show", "job", "-o").splitlines()
    jobs = [dict(re.findall(r"(\S+?)=(.*?) *(?= \S+?=|$)", line.strip())) for line in lines]
    return [{"Comment": ""} | job for job in jobs if "JobId" in job]


def minutes(job: dict) -> float:
    """A job's time limit."""
    days, _, clock = job["TimeLimit"].rpartition("-")
    hours, mins, seconds = map(int, clock.split(":"))
    return int(days or 0) * 1440 + hours * 60 + mins + seconds / 60


def until(condition, what: str, explain=lambda: ""):
    """The condition's first true value."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)  # between two polls
    raise AssertionError(f"not within {PATIENCE} s: {what}\n{explain()[-6000:]}")


def processes(made: Checkout, words: str) -> list[int]:
    """Processes started in this checkout whose command line holds these words."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                place = os.readlink(entry / "cwd")
            except OSError:  # it has ended
                continue
            if words in line and place == str(made.path):
                found.append(int(entry.name))
    return found
