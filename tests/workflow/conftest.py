"""A checkout of the working tree, and one run of the whole workflow at scale smoke in it."""

import fcntl
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Rules without a job at scale smoke: test_sources.py and test_real_pairs.py run them on own files.
ELSEWHERE = {"fetch_model", "fetch_fuser", "collect_questions", "answer_questions"}


def rules() -> dict[str, tuple[str, str]]:
    """Every rule that makes something, by name: the rule it inherits from, and its own text."""
    texts = [file.read_text() for file in (ROOT / "rules").rglob("*.smk")]
    own = [text.split("\n\n\n") for text in texts if "\nrule job:" not in text]
    heads = ((re.search(r"^use rule (\w+) as (\w+) with:", b, re.M), b) for bs in own for b in bs)
    return {head[2]: (head[1], block) for head, block in heads if head}


@dataclass(frozen=True)
class Checkout:
    """A folder with the project in it, and the workflow's command line started there."""

    path: Path

    def snakemake(self, *arguments, check=True, env=None, timeout=900):
        """Run snakemake here and return the finished process (output in `.stdout`)."""
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", *arguments],
            cwd=self.path,
            env=self.environment(env),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode:
            pytest.fail(f"snakemake {' '.join(arguments)} failed:\n{done.stdout[-6000:]}")
        return done

    def planned(self, *arguments) -> dict[str, int]:
        """Jobs by rule that a dry run at scale smoke would run."""
        output = self.snakemake("-n", *arguments, *SMOKE).stdout
        table = re.search(r"Job stats:\njob\s+count\n[-\s]+\n(.*?)\ntotal", output, re.S)
        if table is None:
            assert "Nothing to be done" in output, output[-3000:]
            return {}
        return {name: int(count) for name, count in re.findall(r"(\w+)\s+(\d+)", table[1])}

    def environment(self, extra=None) -> dict:
        """The environment of a user's shell: without what this test session set for itself."""
        env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "OMP_NUM_THREADS")}
        env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
        # Other tests want the cores: a thread that waits for another sleeps. Spinning took a
        # quarter of the CPU time of a small training on two.
        env["OMP_WAIT_POLICY"] = "passive"
        return env | (extra or {})


# Last on a command line: --config takes all words that follow.
SMOKE = ("--profile", "local", "--config", "scale=smoke")


def checkout(path: Path) -> Checkout:
    """Copy what git tracks, and what it would track, to `path`.

    And what is remembered of the library's files, compiled or parsed: it holds for equal files, and
    to make it anew takes Snakemake's start longer than all else.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    ).stdout.decode()
    remembered = [
        file.relative_to(ROOT).as_posix()
        for kind in ("*.pyc", "*.json")
        for file in (ROOT / "src").rglob(f"__pycache__/{kind}")
    ]
    for name in filter(None, [*listed.split("\0"), *remembered]):
        source = ROOT / name
        if source.is_symlink() or source.exists():
            target = path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    return Checkout(path)


@pytest.fixture
def fresh(tmp_path) -> Checkout:
    """A checkout without results."""
    return checkout(tmp_path / "ember")


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Checkout:
    """A checkout in which everything has run at scale smoke. Tests must leave it as it was.

    Where several processes run tests, one makes it and each gets a copy.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return _finish(base / "finished")
    made = base.parent / "finished"
    with open(base.parent / "finished.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            _finish(base.parent / "finishing")
            (base.parent / "finishing").rename(made)
    shutil.copytree(made, base / "finished", symlinks=True)
    return Checkout(base / "finished")


def _finish(path: Path) -> Checkout:
    made = checkout(path)
    made.snakemake("all", *SMOKE)
    return made
