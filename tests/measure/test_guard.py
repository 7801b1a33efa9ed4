"""The guard ends what grows, and nothing else."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest

from ember.commands.main import main
from ember.measure.guard import (
    OVER_LIMIT,
    OVER_TIME,
    UNOBSERVABLE,
    Limits,
    gpu_bytes,
    host_bytes,
    run_guarded,
    watch_process,
)

GROW = """
import time
held = []
while True:
    held.append(bytearray(b"1" * 5_000_000))
    time.sleep(0.01)
"""
# A process that ignores SIGTERM, in a session of its own, started by one that ends at once.
OUTLIVE = """
import subprocess, sys
child = subprocess.Popen(
    [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
     "print('up', flush=True); time.sleep(60)"],
    stdout=subprocess.PIPE, start_new_session={own})
child.stdout.readline()
open({path!r}, "w").write(str(child.pid))
"""


def python(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def alive(pid: int) -> bool:
    try:  # an orphan that nobody has waited for is no longer alive
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(autouse=True)
def handlers():
    """As they were: the command sets one."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def quick(**limits) -> Limits:
    return Limits(**{"gb": {"host": 0.2}, "poll_s": 0.02, "grace_s": 0.2} | limits)


def test_a_process_that_grows_is_ended_at_the_limit():
    watch = run_guarded(python(GROW), quick())
    assert (watch.ended, watch.exit_code) == ("over_limit", OVER_LIMIT)
    assert 0.2 < watch.peaks_gb["host"] < 0.4
    assert not alive(watch.pid)


def test_memory_of_children_counts_and_they_are_ended():
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {GROW!r}])"
    watch = run_guarded(python(nested), quick())
    assert watch.ended == "over_limit"
    assert not [p for p in psutil.process_iter() if GROW in " ".join(_command(p))]


def _command(process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.mark.parametrize("own", [False, True])
def test_what_outlives_the_command_is_ended(tmp_path, own):
    path = tmp_path / "pid"
    # It stays long enough to be seen: a process that leaves its group between two polls is lost.
    text = OUTLIVE.format(own=own, path=str(path)) + "\nimport time; time.sleep(0.5)"
    watch = run_guarded(python(text), quick())
    assert (watch.ended, watch.exit_code) == ("finished", 0)
    assert not alive(int(path.read_text()))


def test_a_command_that_stays_below_keeps_its_exit_code(capfd):
    watch = run_guarded(python("print('hello'); raise SystemExit(7)"), quick())
    assert (watch.ended, watch.exit_code) == ("finished", 7)
    assert "hello" in capfd.readouterr().out


def test_a_command_ended_by_a_signal_says_it_as_a_shell():
    watch = run_guarded(python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"), quick())
    assert watch.exit_code == 128 + 9


def test_a_moment_above_is_forgiven_where_it_is_allowed():
    short = "x = bytearray(b'1' * 300_000_000); import time; time.sleep(0.2); del x; time.sleep(1)"
    assert run_guarded(python(short), quick(over_s=5.0)).ended == "finished"
    assert run_guarded(python(short), quick()).ended == "over_limit"


def test_a_run_that_takes_too_long_is_ended():
    watch = run_guarded(python("import time; time.sleep(60)"), quick(wall_s=0.3))
    assert (watch.ended, watch.exit_code) == ("over_time", OVER_TIME)
    assert watch.seconds < 10


def test_memory_that_cannot_be_observed_is_said_and_ends_a_closed_run():
    said, blind = [], {"gpu": lambda processes: None, "host": host_bytes}
    limits = quick(gb={"gpu": 1.0})
    watch = run_guarded(python("import time; time.sleep(0.2)"), limits, blind, said.append)
    assert watch.ended == "finished"
    assert watch.unobserved == ["gpu"]
    assert sum("CANNOT BE OBSERVED" in line for line in said) == 1
    closed = quick(gb={"gpu": 1.0}, fail_closed=True)
    watch = run_guarded(python("import time; time.sleep(60)"), closed, blind, said.append)
    assert (watch.ended, watch.exit_code) == ("unobservable", UNOBSERVABLE)


def test_what_neighbours_held_before_is_no_breach():
    reads = iter([10_000_000_000] * 3 + [12_500_000_000] * 1000)
    probes = {"gpu": lambda processes: next(reads)}
    watch = run_guarded(python("import time; time.sleep(60)"), quick(gb={"gpu": 2.0}), probes)
    assert watch.ended == "over_limit"
    assert watch.baseline_gb == {"gpu": 10.0}
    assert watch.peaks_gb == {"gpu": 2.5}


def test_a_watched_process_is_ended_and_its_group_is_not():
    # Both are in this test's group: a guard that signals the group would end the test.
    neighbour = subprocess.Popen(python("import time; time.sleep(60)"))
    watched = subprocess.Popen(python(GROW))
    try:
        watch = watch_process(watched.pid, quick())
        assert watch.exit_code == OVER_LIMIT
        assert watched.wait(5) < 0
        assert neighbour.poll() is None
    finally:
        neighbour.kill()
        watched.kill()
        neighbour.wait(), watched.wait()


def test_a_watch_ends_with_its_process():
    watched = subprocess.Popen(python("import time; time.sleep(0.3)"))
    watch = watch_process(watched.pid, quick())
    watched.wait()
    assert (watch.ended, watch.exit_code) == ("finished", 0)
    assert watch_process(watched.pid, quick()).polls == 0  # long gone


def test_who_ends_the_guard_ends_the_command(tmp_path):
    path = tmp_path / "pid"
    text = f"import os, time; open({str(path)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    command = [sys.executable, "-m", "ember.commands.main", "guard", "--host-limit-gb", "1", "--"]
    guard = subprocess.Popen([*command, *python(text)])
    until = time.monotonic() + 20
    while not (path.exists() and path.read_text()) and time.monotonic() < until:
        time.sleep(0.02)
    guard.terminate()
    assert guard.wait(10) == 128 + 15
    assert not alive(int(path.read_text()))


def test_the_command_writes_its_log_and_has_its_exit_code(tmp_path, capsys):
    log = tmp_path / "log.json"
    given = ["guard", "--host-limit-gb", "0.2", "--poll-secs", "0.02", "--log", str(log), "--"]
    assert main([*given, *python(GROW)]) == OVER_LIMIT
    written = json.loads(log.read_text())
    assert written["ended"] == "over_limit"
    assert written["exit_code"] == OVER_LIMIT
    assert written["limits"]["gb"] == {"host": 0.2}
    assert written["peaks_gb"]["host"] > 0.2
    assert f"guard {os.getpid()} watches {written['pid']}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host-limit-gb", "1"], "after --"),
        (["--host-limit-gb", "1", "--pid", "1", "--", "true"], "not both"),
        (["--", "true"], "nothing is limited"),
        (["--host-limit-gb", "0", "--", "true"], "above 0"),
        (["--host-limit-gb", "nan", "--", "true"], "above 0"),
        (["--wall-secs", "-1", "--", "true"], "above 0"),
        (["--host-limit-gb", "1", "--poll-secs", "0", "--", "true"], "poll"),
        (["--host-limit-gb", "1", "--", "no-such-command"], "cannot start no-such-command"),
    ],
)
def test_bad_limits_and_commands_are_refused(arguments, said, capsys):
    assert main(["guard", *arguments]) == 1
    assert said in capsys.readouterr().err


def test_a_gpus_memory_is_the_fullest_ones_by_nvml_else_by_nvidia_smi(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pynvml", None)  # as if it were not installed
    assert gpu_bytes(()) is None  # neither answers: not observed, rather than empty
    said = tmp_path / "nvidia-smi"
    said.write_text("#!/bin/sh\necho 3\necho 5\n")
    said.chmod(0o755)
    assert gpu_bytes(()) == 5 << 20
    said.write_text("#!/bin/sh\necho '[N/A]'\n")
    assert gpu_bytes(()) is None
    used = [7_000, 9_000]
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: len(used),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMemoryInfo=lambda device: SimpleNamespace(used=used[device]),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert gpu_bytes(()) == 9_000


def test_memory_of_the_host_is_observed_or_said_not_to_be():
    assert host_bytes([psutil.Process()]) > 1_000_000
    assert host_bytes(()) is None
