"""Two pipeline stages in two processes (P1-1.2).

    with Pipeline(model, splits=[9, 18], device="cuda", dtype="bfloat16", capacity=2200) as stages:
        run = stages.generate(prompts, sampling, split=9, micro_batches=4, overlap=True)

Contract. Stage 0 embeds and runs the first layers, stage 1 the others, the head and the sampling;
hidden states go forward and tokens back by `torch.distributed` (NCCL between two GPUs, gloo between
two CPU processes). With overlap a stage works on one micro-batch while its neighbour works on
another; without, one of them works at a time. Greedy tokens are those of the one-device engine.

A stage that fails, dies or does not answer in time ends both and raises `StageFailed`. No port is
chosen: the stages meet in a file. Stages are processes of their own program, so the caller needs no
`if __name__ == "__main__"`.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch

import ember
from ember.backends.sampling import SamplingParams
from ember.engine.requests import check_prompt
from ember.model.folder import eos_token_ids, read_architecture
from ember.pipeline import worker
from ember.pipeline.plan import BadSplit, check_split, make_micro_batches
from ember.pipeline.timeline import Event
from ember.records.errors import EmberError

GRACE_S = 2.0  # for the other stage's own message, once one has failed


class StageFailed(EmberError):
    """A pipeline stage ended with an error, was killed, or did not answer."""


@dataclass(frozen=True)
class PipelineRun:
    """What came out of one run, and when each stage did what.

    `total_ms` is from the first stage's start to the last token on the host. `forms`: which backend
    decoded in each stage.
    """

    tokens: list[list[int]]
    logprobs: list[list[float]]
    total_ms: float
    events: list[Event]
    forms: tuple[str, str]


def why_no_stages(device: str) -> str | None:
    """Why two stages cannot run here, or None if they can."""
    if not device.startswith("cuda"):
        return None
    count = torch.cuda.device_count()
    if count < 2:
        return f"two stages need two GPUs, {count} visible to the job"
    if not torch.distributed.is_nccl_available():
        return "this build of torch has no NCCL"
    return None


class Pipeline:
    """Two stages that stay up between runs; a context manager."""

    def __init__(
        self,
        model: str | Path,
        *,
        splits: Sequence[int],
        capacity: int,
        device: str = "cpu",
        dtype: str = "float32",
        threads: int = 1,
        whole: bool = False,
        timeout_s: float = 300.0,
    ):
        """`splits`: layers of the first stage that runs may ask for. `capacity`: the most tokens of
        a prompt and its completion. `threads`: of each process, on the CPU. `whole`: keep all
        layers in both processes, for `single` and `cost`. `timeout_s`: for an answer.
        """
        self.arch, self._eos = read_architecture(Path(model)), eos_token_ids(model)
        for split in splits:
            check_split(split, self.arch.num_layers)
        if reason := why_no_stages(device):
            raise StageFailed(f"{reason}.\nGive the job two devices, or choose device cpu.")
        self._splits, self._capacity, self._timeout = tuple(splits), capacity, timeout_s
        self._options = {
            "model": Path(model).resolve(),
            "splits": self._splits,
            "capacity": capacity,
            "device": device,
            "dtype": dtype,
            "threads": threads,
            "whole": whole,
            "timeout_s": timeout_s,
        }
        self._processes: list[subprocess.Popen] = []
        self._lines: list[Connection] = []

    def __enter__(self) -> "Pipeline":
        self._folder = tempfile.TemporaryDirectory(prefix="ember-pipeline-")
        try:
            for _ in range(2):
                self._launch()
            rendezvous = str(Path(self._folder.name) / "rendezvous")
            for rank in range(2):
                self._tell(rank, self._options | {"rank": rank, "rendezvous": rendezvous})
            self._answers({0, 1})
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Ends both processes."""
        for line in self._lines:
            line.close()  # a stage that waits for a command ends by itself
        deadline = time.monotonic() + GRACE_S
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._lines, self._processes = [], []
        self._folder.cleanup()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingParams,
        *,
        split: int,
        micro_batches: int = 2,
        chunks: int = 1,
        overlap: bool = True,
    ) -> PipelineRun:
        """One completion of each prompt, of `max_tokens` or up to its first stop or end-of-text
        token.

        `chunks`: pieces in which a prompt is prefilled, each of which passes on by itself. Raises
        `BadPrompt`, `BadSplit` before anything runs.
        """
        self._check(prompts, sampling, split)
        make_micro_batches([len(prompt) for prompt in prompts], micro_batches)
        found = self._ask(
            {0, 1},
            "generate",
            prompts=list(map(list, prompts)),
            sampling=sampling.with_seed(),
            split=split,
            micro_batches=micro_batches,
            chunks=chunks,
            overlap=overlap,
        )
        began, ended = found[0]["began"], max(one["ended"] for one in found.values())
        events = [
            Event(
                *(rank, kind, unit.micro_batch, unit.step, unit.chunk),
                *((start - began) * 1e3, (end - began) * 1e3),
            )
            for rank in range(2)
            for kind, unit, start, end in found[rank]["events"]
        ]
        stops = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else self._eos)}
        cut = [_cut(*row, stops) for row in found[1]["completions"]]
        return PipelineRun(
            tokens=[tokens for tokens, _ in cut],
            logprobs=[logprobs for _, logprobs in cut],
            total_ms=(ended - began) * 1e3,
            events=sorted(events, key=lambda event: event.start_ms),
            forms=tuple("+".join(found[rank]["forms"]) for rank in range(2)),
        )

    def single(self, prompts: Sequence[Sequence[int]], sampling: SamplingParams) -> PipelineRun:
        """The one-device engine, in the first stage's process (needs `whole`); no events."""
        self._check(prompts, sampling, None)
        found = self._ask({0}, "single", prompts=list(map(list, prompts)), sampling=sampling)[0]
        return PipelineRun(
            tokens=[tokens for tokens, _ in found["completions"]],
            logprobs=[logprobs for _, logprobs in found["completions"]],
            total_ms=found["ms"],
            events=[],
            forms=("engine", ""),
        )

    def cost(self, **options: int) -> list[dict]:
        """What each part of the model costs on the first stage's device (needs `whole`): rows of
        phase, part, repeat and ms; see `Worker.cost`."""
        return self._ask({0}, "cost", **options)[0]

    def ping(self, there: tuple, back: tuple, *, count: int, repeats: int) -> list[float]:
        """Seconds of a message of one shape forward and of another back; see `Worker.ping`."""
        return self._ask({0, 1}, "ping", there=there, back=back, count=count, repeats=repeats)[0]

    def _check(self, prompts, sampling: SamplingParams, split: int | None) -> None:
        if split is not None and split not in self._splits:
            raise BadSplit(
                f"this pipeline was not made for a first stage of {split} layers.\n"
                f"Choose one of {', '.join(map(str, self._splits))}, or make it with that split."
            )
        for prompt in prompts:
            check_prompt(prompt, sampling.max_tokens, self.arch, self._capacity)

    def _launch(self) -> None:
        ours, theirs = Pipe()
        self._lines.append(ours)
        source = str(Path(next(iter(ember.__path__))).parent)
        paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
        threads = str(self._options["threads"])
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
        }
        # Both stages are on this machine, whose own name need not resolve.
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            environment.setdefault(name, "lo")
        # A queue of its own for every stream: a message that is waited for holds up no computing.
        environment.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
        with theirs:
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", worker.__name__, str(theirs.fileno())],
                    env=environment,
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=2,  # what a stage prints is no output of the parent
                )
            )

    def _ask(self, ranks: set[int], command: str, **options) -> dict:
        if not self._processes:
            raise StageFailed("the pipeline is closed.\nMake a new one.")
        for rank in ranks:
            self._tell(rank, (command, options))
        return self._answers(ranks)

    def _tell(self, rank: int, message) -> None:
        try:
            self._lines[rank].send(message)
        except OSError:
            self._fail(rank)

    def _answers(self, ranks: set[int]) -> dict:
        """The answer of each stage. All that goes wrong in one of them is noticed at once."""
        answers, deadline = {}, time.monotonic() + self._timeout
        while ranks - answers.keys():
            asked = {self._lines[rank]: rank for rank in ranks - answers.keys()}
            ready = wait(list(asked), max(0.0, deadline - time.monotonic()))
            if not ready:
                late = ", ".join(str(rank) for rank in sorted(asked.values()))
                self.close()
                raise StageFailed(
                    f"pipeline stage {late} gave no answer within {self._timeout:.0f} s.\n"
                    "See the log for what it waits for, or raise the timeout (p1.pipeline.timeout)."
                )
            for line in ready:
                rank = asked[line]
                try:
                    status, answers[rank] = line.recv()
                except (EOFError, OSError):
                    self._fail(rank)
                if status == "failed":
                    self._fail(rank, answers[rank])
        return answers

    def _fail(self, rank: int, message: str | None = None) -> None:
        """Ends both stages and raises, with the cause: a stage whose neighbour is gone fails too,
        and may be the first to say so."""
        told, other = {rank: message} if message else {}, 1 - rank
        if not _is_cause(message):
            with contextlib.suppress(EOFError, OSError):
                if self._lines[other].poll(GRACE_S):
                    status, content = self._lines[other].recv()
                    told |= {other: content} if status == "failed" else {}
        gone = {at: _status(p) for at, p in enumerate(self._processes) if at not in told}
        self.close()
        causes = [at for at, text in told.items() if _is_cause(text)]
        dead = [at for at, status in gone.items() if status is not None]
        if dead and not causes:
            code = gone[dead[0]]
            how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
            raise StageFailed(
                f"pipeline stage {dead[0]} {how}.\n"
                "Check that two processes with the model fit in memory; the log may say more."
            )
        at = (causes or list(told) or [rank])[0]
        text = told.get(at, "it closed its connection").strip().splitlines()[0]
        raise StageFailed(
            f"pipeline stage {at} failed: {text}\n"
            "The log has its traceback; the other stage was ended."
        )


def _is_cause(message: str | None) -> bool:
    """Not just that the neighbour is gone."""
    words = ("gloo", "NCCL", "nccl", "Connection ", "DistStoreError", "DistNetworkError")
    return message is not None and not any(word in message for word in words)


def _status(process: subprocess.Popen) -> int | None:
    """Exit status of a process that has ended or is about to; None if it lives."""
    try:
        return process.wait(GRACE_S / 2)
    except subprocess.TimeoutExpired:
        return None


def _cut(tokens: list[int], logprobs: list[float], stops: Sequence[int]):
    """A row up to its first stop token, which belongs to it."""
    end = next((at + 1 for at, token in enumerate(tokens) if token in stops), len(tokens))
    return tokens[:end], logprobs[:end]
