"""The memory guard (L-7): watches the memory of a process tree and ends it at a limit.

Contract. A probe is a function of the tree's processes that answers with bytes, or None where it
cannot observe any. The guard polls its probes; a reading above its limit for `over_s` seconds, or a
run longer than `wall_s`, ends the tree: SIGTERM, after `grace_s` SIGKILL. It signals the processes
that it saw below the watched one and, where it started that itself, its process group: never the
caller's. GB are 1e9 bytes.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import psutil

from ember.records.errors import EmberError

# Exit codes of the guard's own; otherwise it exits with the command's.
OVER_LIMIT, OVER_TIME, UNOBSERVABLE = 97, 98, 99

Probe = Callable[[Iterable[psutil.Process]], int | None]


class BadGuard(EmberError):
    """Limits that are none, or a command that cannot be started."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What ends a run. `gb`: the most GB by probe name; seconds elsewhere.

    `fail_closed`: memory that cannot be observed ends the run too.
    """

    gb: Mapping[str, float]
    over_s: float = 0.0
    poll_s: float = 0.5
    wall_s: float | None = None
    grace_s: float = 5.0
    fail_closed: bool = False

    def __post_init__(self):
        for name, limit in self.gb.items():
            if name not in PROBES:
                raise BadGuard(f"no probe {name!r}\nchoose from {', '.join(PROBES)}")
            if not limit > 0:
                raise BadGuard(f"the limit of {name} is {limit} GB\nset it above 0")
        if not self.poll_s > 0 or self.over_s < 0 or self.grace_s < 0:
            raise BadGuard("set poll above 0, over and grace to 0 or more seconds")
        if self.wall_s is not None and not self.wall_s > 0:
            raise BadGuard(f"the wall-clock limit is {self.wall_s} s\nset it above 0, or leave out")
        if not self.gb and self.wall_s is None:
            raise BadGuard("nothing is limited\nset a limit of memory or of time")


@dataclass
class Watch:
    """What was seen: peaks and baselines in GB by probe, and how it ended."""

    pid: int
    peaks_gb: dict[str, float] = field(default_factory=dict)
    baseline_gb: dict[str, float] = field(default_factory=dict)
    unobserved: list[str] = field(default_factory=list)  # probes that ever answered with None
    polls: int = 0
    seconds: float = 0.0
    poll_ms: float = 0.0  # mean time of a poll
    ended: str = "finished"  # or over_limit, over_time, unobservable
    why: str = ""
    exit_code: int | None = None


def host_bytes(processes: Iterable[psutil.Process]) -> int | None:
    """Anonymous and shared memory of the processes; files they map are not counted.

    Cheap on Linux: a few µs a process, and no lock of its memory map. None where no process
    could be read.
    """
    found = [size for process in processes if (size := _resident(process)) is not None]
    return sum(found) if found else None


def _resident(process: psutil.Process) -> int | None:
    try:
        text = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        with suppress(psutil.Error):
            return process.memory_info().rss
        return None
    lines = dict(line.split(":", 1) for line in text.splitlines() if line.startswith("Rss"))
    return 1024 * sum(int(lines[key].split()[0]) for key in ("RssAnon", "RssShmem") if key in lines)


def gpu_bytes(processes: Iterable[psutil.Process]) -> int | None:
    """Memory used on the fullest GPU, whosever it is: process ids of a container are not the
    driver's. From NVML, else from nvidia-smi; None where neither answers."""
    with suppress(Exception):  # no package, no driver, no permission: the next source is asked
        pynvml = import_module("pynvml")  # optional: no job needs it
        pynvml.nvmlInit()
        devices = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return max(pynvml.nvmlDeviceGetMemoryInfo(device).used for device in devices)
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    with suppress(OSError, subprocess.SubprocessError, ValueError):
        said = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
        return max(int(line) for line in said.stdout.split()) << 20
    return None


PROBES: dict[str, Probe] = {"host": host_bytes, "gpu": gpu_bytes}
NEIGHBOURS = ("gpu",)  # what others use before the start counts as theirs


def run_guarded(
    command: Sequence[str],
    limits: Limits,
    probes: Mapping[str, Probe] = PROBES,
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
) -> Watch:
    """Runs a command in a process group of its own under the limits.

    What it leaves running when it ends is ended too. Raises BadGuard where it cannot be started.
    """
    if not command:
        raise BadGuard("no command\nput it after --")
    baseline = _baseline(limits, probes)
    try:
        child = subprocess.Popen(command, start_new_session=True)
    except OSError as error:
        raise BadGuard(f"cannot start {command[0]}: {error.strerror or error}") from None
    say(f"guard {os.getpid()} watches {child.pid}: {_described(limits)}")
    tree = Tree(child.pid, group=child.pid)
    try:
        watch = _watch(tree, limits, probes, baseline, say, over=lambda: child.poll() is not None)
    finally:
        left = tree.running()
        if left and child.poll() is not None:
            say(f"guard: {len(left)} processes outlive the command; they are ended")
        tree.end(limits.grace_s)
        child.wait()
    watch.exit_code = _code(watch, child.returncode)
    return watch


def watch_process(
    pid: int,
    limits: Limits,
    probes: Mapping[str, Probe] = PROBES,
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
) -> Watch:
    """Watches a running process and its descendants, but for the guard itself, until it ends.

    Only they are signalled, one by one, and never their process group, which is the caller's.
    """
    tree = Tree(pid)
    watch = _watch(tree, limits, probes, _baseline(limits, probes), say, over=tree.gone)
    if watch.ended != "finished":
        tree.end(limits.grace_s)
    watch.exit_code = _code(watch, 0)
    return watch


class Tree:
    """A process, its descendants, and those of them that have lost their parent since."""

    def __init__(self, pid: int, group: int | None = None):
        self.group = group
        self.seen: dict[int, psutil.Process] = {}
        with suppress(psutil.NoSuchProcess):
            self.seen[pid] = psutil.Process(pid)
        self.root = self.seen.get(pid)

    def gone(self) -> bool:
        return self.root is None or not _alive(self.root)

    def running(self) -> list[psutil.Process]:
        """All of them that still run, new ones included."""
        for process in [*self.seen.values()]:
            with suppress(psutil.Error):
                if process.ppid() in self.seen:  # found from there; each search reads all of /proc
                    continue
                for child in process.children(recursive=True):
                    if child.pid != os.getpid():
                        self.seen.setdefault(child.pid, child)
        self.seen = {pid: process for pid, process in self.seen.items() if _alive(process)}
        return [*self.seen.values()]

    def end(self, grace_s: float) -> None:
        """SIGTERM to all, after `grace_s` SIGKILL to those that are left."""
        for number, patience in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
            left = self.running()
            if self.group is not None:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.group, number)
            for process in left:
                with suppress(psutil.Error):
                    process.send_signal(number)
            if not left:
                return
            until = time.monotonic() + patience
            while self.running() and time.monotonic() < until:
                time.sleep(0.02)


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _watch(tree, limits, probes, baseline, say, over) -> Watch:
    found = Watch(tree.root.pid if tree.root else 0, baseline_gb=baseline)
    began, since, looked = time.monotonic(), None, 0.0
    while not over():
        start = time.monotonic()
        breach = _look(tree, limits, probes, found, say)
        now = time.monotonic()
        found.polls, looked = found.polls + 1, looked + now - start
        since = (since if since is not None else start) if breach else None
        if limits.fail_closed and found.unobserved:
            found.ended = "unobservable"
            found.why = f"memory cannot be observed: {', '.join(found.unobserved)}"
        elif breach and now - since >= limits.over_s:
            found.ended, found.why = "over_limit", breach
        elif limits.wall_s is not None and now - began >= limits.wall_s:
            found.ended, found.why = "over_time", f"ran longer than {limits.wall_s:g} s"
        if found.ended != "finished":
            say(f"guard ends {found.pid}: {found.why}")
            break
        time.sleep(max(0.0, limits.poll_s - (now - start)))
    found.seconds = time.monotonic() - began
    found.poll_ms = 1e3 * looked / max(1, found.polls)
    return found


def _look(tree: Tree, limits: Limits, probes, found: Watch, say) -> str:
    """Reads every probe once; what is above its limit, or nothing."""
    processes, breach = tree.running(), ""
    for name, limit in limits.gb.items():
        read = probes[name](processes) if processes else 0
        if read is None:
            if name not in found.unobserved:
                found.unobserved.append(name)
                say(
                    f"guard: THE {name.upper()} MEMORY CANNOT BE OBSERVED; its limit guards nothing"
                )
            continue
        gb = max(0.0, read / 1e9 - found.baseline_gb.get(name, 0.0))
        found.peaks_gb[name] = max(gb, found.peaks_gb.get(name, 0.0))
        if gb > limit:
            breach = f"{name} memory is {gb:.2f} GB, above its limit of {limit:.3g} GB"
    return breach


def _baseline(limits: Limits, probes) -> dict[str, float]:
    read = {name: probes[name](()) for name in limits.gb if name in NEIGHBOURS}
    return {name: size / 1e9 for name, size in read.items() if size is not None}


def _described(limits: Limits) -> str:
    parts = [f"{name} at most {gb:g} GB" for name, gb in limits.gb.items()]
    parts += [f"{limits.wall_s:g} s"] if limits.wall_s is not None else []
    return ", ".join(parts) + f", polled every {limits.poll_s:g} s"


def _code(watch: Watch, command: int) -> int:
    own = {"over_limit": OVER_LIMIT, "over_time": OVER_TIME, "unobservable": UNOBSERVABLE}
    # As a shell says it of a command that a signal ended.
    return own.get(watch.ended, command if command >= 0 else 128 - command)
