"""The project's side of a comparison: a peer as a process that answers one line per request.

    with Peer("llama_cpp_decode", python, setup, timeout_s=300) as peer:
        ready = peer.start()                       # what the adapter says of itself
        run = peer.generate(prompts, new_tokens)   # {"total_s", "tokens"}, or
        run = peer.stream(streams, prefill=…)      # {"nll", "fed", "ms", "visible"}

A setup is plain data: `model` (directory), `weights` ("files", or "random" for a directory that
only declares them), `gguf` (file or None), `device`, `dtype`, `threads`, `seed`, `capacity` (the
most tokens of a prompt and its continuation), `candidates` (the most of a prompt) and the
adapter's own `arguments`. The peer's Python runs `serve.py` and one file of `adapters`, and sees
nothing of this project unless it is the project's own.
"""

import contextlib
import json
import logging
import math
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from ember.peers import serve

# Imported so that a job's code hash covers what the peers run; their own imports come later.
from ember.peers.adapters import (  # noqa: F401
    ember_engine,
    ember_pipeline,
    kvpress_stream,
    llama_cpp_decode,
    llama_cpp_shift,
    sglang_offline,
    transformers_generate,
    transformers_sliding,
    vllm_offline,
)
from ember.records.errors import EmberError
from ember.records.provenance import source_root

log = logging.getLogger(__name__)

ADAPTERS = {file.stem for file in serve.FOLDER.glob("[!_]*.py")}
THREAD_LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class PeerMissing(EmberError):
    """A peer that is not installed; the message is its environment's reason."""


class PeerFailed(EmberError):
    """A peer that crashed, answered nonsense or ran out of time; with its last line on stderr."""


class Peer:
    """One adapter in a process of its own. Raises `PeerMissing` and `PeerFailed`."""

    def __init__(
        self,
        adapter: str,
        python: str | Path | None,
        setup: Mapping,
        *,
        timeout_s: float,
        environment: Mapping[str, str | int] | None = None,
    ):
        """`python`: the peer's interpreter; None: this one. `timeout_s`: for each answer.
        `environment`: variables of its process, over those it has anyway."""
        assert adapter in ADAPTERS, f"no adapter {adapter!r} among {sorted(ADAPTERS)}"
        self.adapter, self.timeout_s, self._own = adapter, timeout_s, python is None
        self.python = Path(python or sys.executable)
        self._environment = {name: str(value) for name, value in (environment or {}).items()}
        self.setup = dict(setup)
        self._process: subprocess.Popen | None = None
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._said: deque[str] = deque(maxlen=50)

    def start(self) -> dict:
        """Starts the process and waits until it has loaded the model; its "ready" line."""
        if not self.python.is_file():
            raise PeerMissing(
                f"{self.python} is not there\ninstall the peer's environment (docs/peers.md)"
            )
        self._process = subprocess.Popen(
            [str(self.python), serve.__file__, self.adapter],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=_environment(self._own, self.setup["threads"]) | self._environment,
            start_new_session=True,  # workers of the peer end with it
        )
        self._readers = [
            threading.Thread(target=self._read_answers, daemon=True),
            threading.Thread(target=self._read_log, daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        return self._ask(self.setup, "ready")

    def probe(self) -> dict:
        """Starts the process for its imports alone; raises `PeerMissing` where they fail."""
        self.setup["probe"] = True
        return self.start()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        new_tokens: int,
        *,
        candidates: int = 1,
        temperature: float = 0.0,
    ) -> dict:
        """One timed call; raises `PeerFailed` too where a candidate is not `new_tokens` long."""
        request = {"prompts": prompts, "candidates": candidates}
        run = self._ask(request | {"new_tokens": new_tokens, "temperature": temperature}, "run")
        lengths = [[len(tokens) for tokens in found] for found in run["tokens"]]
        if lengths != [[new_tokens] * candidates] * len(prompts):
            raise PeerFailed(
                f"gave other than {new_tokens} tokens for each of {candidates} candidates of "
                f"{len(prompts)} prompts\nsee docs/peers.md"
            )
        return run

    def stream(self, streams: Sequence[Sequence[int]], **how) -> dict:
        """Streams under the peer's own eviction (see `serve`); raises `PeerFailed` too where losses
        are missing or not finite."""
        run = self._ask({"streams": streams, **how}, "stream")
        if [len(losses) for losses in run["nll"]] != [len(tokens) - 1 for tokens in streams]:
            raise PeerFailed("gave losses of other than all tokens\nsee docs/peers.md")
        if not all(math.isfinite(loss) for losses in run["nll"] for loss in losses):
            raise PeerFailed("gave losses that are not finite\nsee docs/peers.md")
        return run

    def close(self) -> None:
        """Ends the process and what it started."""
        if self._process is None:
            return
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self._process.stdin.close()
            self._process.wait(timeout=10)
        self._kill()

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    @property
    def last_words(self) -> str:
        """The last line that the peer wrote on stderr."""
        return next((line for line in reversed(self._said) if line), "nothing on stderr")

    def _ask(self, request: Mapping, event: str) -> dict:
        with contextlib.suppress(OSError):  # it has ended; what it said before says why
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        try:
            line = self._answers.get(timeout=self.timeout_s)
        except queue.Empty:
            self._kill()
            raise self._failed(
                f"no answer within {self.timeout_s:g} s; last line: {self.last_words}\n"
                "raise the comparison's timeout_s, or choose a smaller point"
            ) from None
        if line is None:
            status = self._process.wait()
            self._readers[1].join(timeout=5)
            how = (
                f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
            )
            raise self._failed(
                f"ended with {how}; last line: {self.last_words}\n"
                "run the adapter by hand (docs/peers.md)"
            )
        try:
            answer = json.loads(line)
            found = answer["event"]
        except (ValueError, KeyError, TypeError):
            self._kill()
            raise self._failed(f"no answer but {line[:200]!r}\nsee docs/peers.md") from None
        if found == "error":
            self._process.wait()
            reason = f"{answer['reason']}\nsee docs/peers.md"
            raise PeerMissing(reason) if answer["missing"] else self._failed(reason)
        if found != event:
            self._kill()
            raise self._failed(f"answered {found!r} where {event!r} was due\nsee docs/peers.md")
        return answer

    def _failed(self, why: str) -> PeerFailed:
        """The failure, once the log has what the peer said last."""
        self._readers[1].join(timeout=1)
        log.warning("%s said last:\n%s", self.adapter, "\n".join(self._said))
        return PeerFailed(why)

    def _read_answers(self) -> None:
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def _read_log(self) -> None:
        for line in self._process.stderr:
            self._said.append(line.strip())
            log.debug("%s: %s", self.adapter, line.rstrip())

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def peer_of(framework: Mapping, setup: Mapping, timeout_s: float) -> Peer:
    """The process of a framework as the configuration has it (`Framework`), not started.

    A relative path of an interpreter starts at this checkout.
    """
    python = framework.get("python")
    return Peer(
        framework["adapter"],
        None if python is None else source_root() / python,
        {**setup, "arguments": dict(framework.get("arguments") or {})},
        timeout_s=timeout_s,
        environment=framework.get("environment"),
    )


def versions_of(ready: Mapping) -> str:
    """Versions of a peer and what it rests on, of its "ready" line."""
    return ", ".join(f"{name} {version}" for name, version in ready["versions"].items())


def _environment(own: bool, threads: int) -> dict[str, str]:
    """The process's environment: another Python must not see this one's packages."""
    hidden = () if own else ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return env | offline | {name: str(threads) for name in THREAD_LIMITS}
