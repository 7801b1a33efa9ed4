"""The process of one stage: loads the model, then does what its parent asks, one command at a time.

    python -m ember.pipeline.worker FD

Contract. FD is a connection to the parent. Its first message is the options of `Worker`, every
further one (command, options) of its methods; each is answered by ("done", result) or by
("failed", message), after which the process ends. It also ends when the parent does.
"""

import contextlib
import functools
import itertools
import os
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from ember.backends.sampling import SamplingParams, prompt_key
from ember.engine.engine import Engine
from ember.measure.clock import timed
from ember.measure.device import synchronize
from ember.model.checkpoint import load_decoder
from ember.pipeline.plan import Unit, make_micro_batches, plan_units
from ember.pipeline.run import run_first, run_last
from ember.pipeline.stage import Stage, make_stage, take_layers
from ember.pipeline.timeline import DeviceTimeline, HostTimeline
from ember.pipeline.wire import DeviceWire, HostWire
from ember.records.errors import EmberError

KEPT_STAGES = 32  # micro-batches' stages, with their caches and graphs, that stay in memory


class Worker:
    """One stage; its public methods are the commands."""

    def __init__(
        self,
        *,
        rank: int,
        rendezvous: str,
        model: Path,
        splits: Sequence[int],
        capacity: int,
        device: str,
        dtype: str,
        threads: int,
        whole: bool,
        timeout_s: float,
    ):
        """`rendezvous`: the file in which the stages meet; the others as in `Pipeline`."""
        self._rank, self._capacity = rank, capacity
        on_cuda, timeout = device != "cpu", timedelta(seconds=timeout_s)
        self._device = f"cuda:{rank}" if on_cuda else "cpu"
        torch.set_num_threads(threads)
        if on_cuda:
            torch.cuda.set_device(rank)
        dist.init_process_group(
            "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2, timeout=timeout
        )
        self._wire = DeviceWire(rank, self._device, timeout) if on_cuda else HostWire(rank, timeout)
        self._connect()
        decoder = load_decoder(model, self._device, getattr(torch, dtype))
        self.layers = decoder.arch.num_layers
        kept = range(self.layers)
        if not whole:
            kept = kept[: max(splits)] if rank == 0 else kept[min(splits) :]
        self._first_layer = kept.start
        self._decoder = take_layers(decoder, kept)
        # A micro-batch keeps its stage, with cache and graphs, from one run to the next.
        self._stage = functools.lru_cache(KEPT_STAGES)(self._micro_batch)
        self._engine = None

    def _connect(self) -> None:
        """One message each way: connections are made here and not in the midst of a run."""
        self._open_timeline()
        number = torch.zeros(1, dtype=torch.long, device=self._device)
        for back in (False, True):
            if self._rank == int(back):
                self._wire.send(number, None, back=back)
            else:
                self._wire.take(self._wire.post(number, None, back=back))
        self._wire.close()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingParams,
        split: int,
        micro_batches: int,
        chunks: int,
        overlap: bool,
    ) -> dict:
        """Runs this stage's share; times in seconds of the machine's clock."""
        lengths = [len(prompt) for prompt in prompts]
        groups = make_micro_batches(lengths, micro_batches)
        stages = [self._stage(split, number, len(group)) for number, group in enumerate(groups)]
        with torch.inference_mode():
            for stage, group in zip(stages, groups, strict=True):
                stage.begin(sampling, [(prompt_key(prompts[n]), 0) for n in group])
            units = plan_units(
                [lengths[group[0]] for group in groups],
                sampling.max_tokens,
                chunks=chunks,
                overlap=overlap,
            )
            tokens = [torch.tensor([prompts[n] for n in group]) for group in groups]
            inputs = [self._input(unit, tokens[unit.micro_batch]) for unit in units]
            timeline = self._open_timeline()
            began = time.perf_counter()
            run = run_last if self._rank else run_first
            run(units, stages, inputs, self._wire, timeline, overlap=overlap)
            rows = [stage.sampled() for stage in stages] if self._rank else []
            self._wire.close()
            ended = time.perf_counter()
        found: list = [None] * len(lengths)
        for group, (ids, logprobs) in zip(groups, rows, strict=False):
            for place, number in enumerate(group):
                found[number] = (ids[place], logprobs[place])
        return {
            "began": began,
            "ended": ended,
            "events": timeline.seconds(),
            "completions": found,
            "forms": sorted({stage.backend for stage in stages}),
        }

    def _input(self, unit: Unit, tokens: Tensor) -> Tensor | None:
        """What a prefill unit runs: tokens, or memory for hidden states that will come."""
        if unit.step:
            return None
        part = tokens[:, unit.start : unit.stop]
        if self._rank == 0:
            return part.to(self._device)
        weight = self._decoder.embed_tokens.weight
        return weight.new_empty(*part.shape, self._decoder.arch.hidden_size)

    def _open_timeline(self):
        """Both stages are idle and ready; the run may begin."""
        synchronize(self._device)
        timeline = self._new_timeline()
        self._wire.open(timeline)
        dist.barrier()
        return timeline

    def _new_timeline(self) -> HostTimeline:
        return HostTimeline() if self._device == "cpu" else DeviceTimeline(self._device)

    def _micro_batch(self, split: int, number: int, rows: int) -> Stage:
        """The stage of a micro-batch; its number tells it from others of the same size."""
        if self._rank:
            return self._new_stage(range(split, self.layers), rows, last=True)
        return self._new_stage(range(split), rows, first=True)

    def _new_stage(
        self, layers: range, rows: int, *, first: bool = False, last: bool = False
    ) -> Stage:
        own = range(layers.start - self._first_layer, layers.stop - self._first_layer)
        part = take_layers(self._decoder, own)
        with torch.inference_mode():
            return make_stage(part, rows, self._capacity, first=first, last=last)

    def ping(self, there: tuple, back: tuple, count: int, repeats: int) -> list[float]:
        """Seconds of a message forward and one back, mean of `count` in a row, `repeats` times.

        Shapes of hidden states or, where one is (B,), of tokens.
        """
        weight, device = self._decoder.embed_tokens.weight, self._device
        there, back = (
            torch.zeros(shape, dtype=torch.long if len(shape) == 1 else weight.dtype, device=device)
            for shape in (there, back)
        )
        seconds = []
        for turn in range(-1, repeats):
            self._open_timeline()
            began = time.perf_counter()
            for _ in range(count):
                if self._rank == 0:
                    self._wire.send(there, None)
                    self._wire.take(self._wire.post(back, None, back=True))
                else:
                    self._wire.take(self._wire.post(there, None))
                    self._wire.send(back, None, back=True)
            self._wire.close()
            if turn >= 0:
                seconds.append((time.perf_counter() - began) / count)
        return seconds

    def single(self, prompts, sampling: SamplingParams) -> dict:
        """The one-device engine on the same prompts, all in one batch, in this process."""
        if self._engine is None:
            self._engine = Engine(self._decoder, capacity=self._capacity)
        ms, found = timed(lambda: self._engine.generate(prompts, sampling), self._device)
        return {"ms": ms, "completions": [(list(c.tokens), list(c.logprobs)) for [c] in found]}

    def cost(self, rows: int, context: int, tokens: int, steps: int, repeats: int) -> list[dict]:
        """Milliseconds of every part of the model in prefill and decoding, one row a repeat.

        Each layer is a stage of its own, and all take turns as in a forward, so that caches are as
        warm as there. What a call costs beside its layers is what all layers take alone less what
        they take together. Embedding and head are the difference they make to a layer. A prefill
        is of `tokens` tokens, decoding after `context` cached ones; `steps` is the number of
        decoding steps that a time is the mean of.
        """
        with torch.inference_mode():
            decode = self._decode_costs(rows, context, steps, repeats)
            return self._prefill_costs(rows, tokens, repeats) + decode

    def _decode_costs(self, rows: int, context: int, steps: int, repeats: int) -> list[dict]:
        count, sampling = self.layers, SamplingParams(max_tokens=steps + 1)
        vocabulary = self._decoder.arch.vocab_size
        stages = {f"layer {i}": self._new_stage(range(i, i + 1), rows) for i in range(count)}
        stages["all"] = self._new_stage(range(count), rows)
        stages["embed"] = self._new_stage(range(1), rows, first=True)
        stages["head"] = self._new_stage(range(count - 1, count), rows, last=True)
        names = [(row, 0) for row in range(rows)]
        found = []
        for turn in range(-1, repeats):
            timeline = self._new_timeline()
            for stage in stages.values():
                stage.begin(sampling, names)
                stage.cache.advance(context)
                if stage.last:  # a first token, from which decoding goes on
                    stage.sample(self._decoder.embed_tokens.weight.new_zeros(rows, vocabulary))
            synchronize(self._device)
            for _ in range(steps):
                for name, stage in stages.items():
                    start = timeline.mark()
                    out = stage.decode()
                    end = timeline.mark()
                    timeline.add("decode", name, start, end)
                    if stage.last:
                        stage.sample(out)
                        timeline.add("decode", "sample", end, timeline.mark())
            if turn < 0:
                continue
            ms = dict.fromkeys([*stages, "sample"], 0.0)
            for _, name, start, end in timeline.seconds():
                ms[name] += (end - start) * 1e3 / steps
            call = (sum(ms[f"layer {i}"] for i in range(count)) - ms["all"]) / max(1, count - 1)
            parts = {f"layer {i}": ms[f"layer {i}"] - call for i in range(count)}
            parts |= {"call": call, "embed": ms["embed"] - ms["layer 0"], "sample": ms["sample"]}
            parts["head"] = ms["head"] - ms[f"layer {count - 1}"]
            found += [_cost("decode", part, turn, value) for part, value in parts.items()]
        return found

    def _prefill_costs(self, rows: int, tokens: int, repeats: int) -> list[dict]:
        decoder, found = self._decoder, []
        first = self._new_stage(range(self.layers), rows, first=True, last=True)
        ids = torch.zeros(rows, tokens, dtype=torch.long, device=self._device)
        for turn in range(-1, repeats):
            timeline = self._new_timeline()
            first.begin(SamplingParams(max_tokens=1), [(row, 0) for row in range(rows)])
            synchronize(self._device)
            marks = [("", timeline.mark())]
            hidden = decoder.embed(ids)
            marks.append(("embed", timeline.mark()))
            for index in range(self.layers):
                hidden = decoder(hidden=hidden, cache=first.cache, layers=range(index, index + 1))
                marks.append((f"layer {index}", timeline.mark()))
            logits = decoder.logits(hidden[:, -1:])[:, 0]
            marks.append(("head", timeline.mark()))
            first.sample(logits)
            marks.append(("sample", timeline.mark()))
            for (_, start), (name, end) in itertools.pairwise(marks):
                timeline.add("prefill", name, start, end)
            if turn >= 0:
                found += [
                    _cost("prefill", name, turn, (end - start) * 1e3)
                    for _, name, start, end in timeline.seconds()
                ]
        return found


def _cost(phase: str, part: str, turn: int, ms: float) -> dict:
    return {"phase": phase, "part": part, "repeat": turn, "ms": ms}


def _end_with(process: int) -> None:
    """Ends this process once its parent is another: the one that started it is gone."""
    while os.getppid() == process:
        time.sleep(1.0)
    os._exit(1)


def main() -> None:
    """Answers the parent until it hangs up."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    parent = Connection(int(sys.argv[1]))
    try:
        worker = Worker(**parent.recv())
        parent.send(("done", worker.layers))
        while True:
            command, options = parent.recv()
            parent.send(("done", getattr(worker, command)(**options)))
    except EOFError:
        os._exit(0)  # the parent is gone: do not wait for the peer
    except KeyboardInterrupt:
        os._exit(130)
    except Exception as error:
        if not isinstance(error, EmberError):
            traceback.print_exc()
        with contextlib.suppress(OSError):
            parent.send(("failed", f"{type(error).__name__}: {error}"))
        os._exit(1)


if __name__ == "__main__":
    main()
