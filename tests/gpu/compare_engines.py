"""Speed of this tree's engine beside another tree's, in turns, on a CUDA device.

    PYTHONPATH=src python tests/gpu/compare_engines.py OTHER/src OUT.json [--preset qwen3-4b]
    ... --packed nvfp4 --workloads "batch 1" "8 candidates"
    ... --preset pythia-2.8b --workloads stream

Each tree runs in a process of its own, which makes the model once and then measures one workload a
turn; the turns alternate, and which tree goes first alternates, too. Workloads: decoding of one
row and of 8 candidates at a context, many prompts x 8 candidates, prefill, and a stream whose old
tokens drop out, the context its window (its decoding alone). Random weights. A ratio is this tree's
speed over the other's of the same turn; OUT.json has all times and, by workload, the median ratio
with its least and largest. On a machine without a GPU:

    ... --device cpu --preset trial
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

WORKLOADS = ("prefill", "batch 1", "8 candidates", "many prompts", "stream")
STREAM = {"name": "refresh", "refresh_budget": 16, "selector": "uniform", "max_drop": 8}
TRIAL = {
    "model_type": "qwen3",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 32,
    "vocab_size": 512,
    "max_positions": 4096,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path, help="src of the other tree")
    parser.add_argument("out", type=Path)
    parser.add_argument("--here", type=Path, default=Path(__file__).parents[2] / "src")
    parser.add_argument("--other-python", default=sys.executable)
    parser.add_argument("--preset", default="qwen3-4b", help="or trial: a tiny model")
    parser.add_argument("--packed", help="format of all weights, the head's, too; else dense")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=WORKLOADS[:-1])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rollouts", type=int, default=5, help="repeats of the longest workload")
    asked = parser.parse_args()
    settings = {
        name: getattr(asked, name)
        for name in ("preset", "packed", "device", "context", "new_tokens", "prompts", "rows")
    }
    pythons = {"new": (sys.executable, asked.here), "old": (asked.other_python, asked.other)}
    trees = {
        name: Tree(python, source.resolve(), settings) for name, (python, source) in pythons.items()
    }
    times: dict[str, dict[str, list[float]]] = {}
    for workload in asked.workloads:
        count = asked.rollouts if workload == "many prompts" else asked.repeats
        times[workload] = {"new": [], "old": []}
        for turn in range(-1, count):  # the first one compiles, records, and is not counted
            for name in sorted(trees, reverse=turn % 2 == 0):
                seconds = trees[name].run(workload)
                if turn >= 0:
                    times[workload][name].append(seconds)
        print(describe(workload, times[workload]), flush=True)
    for tree in trees.values():
        tree.close()
    ratios = {workload: summary(pairs) for workload, pairs in times.items()}
    about = {"device": trees["new"].device, **settings}
    asked.out.write_text(json.dumps({"about": about, "ratios": ratios, "seconds": times}, indent=1))


def summary(pairs: dict[str, list[float]]) -> dict[str, float]:
    """Speed of the new tree over the old one's, turn by turn."""
    found = sorted(old / new for new, old in zip(pairs["new"], pairs["old"], strict=True))
    return {"min": found[0], "median": statistics.median(found), "max": found[-1]}


def describe(workload: str, pairs: dict[str, list[float]]) -> str:
    new, old = (statistics.median(pairs[name]) * 1e3 for name in ("new", "old"))
    spread = ", ".join(f"{name} {value:.3f}" for name, value in summary(pairs).items())
    return f"{workload}: new {new:.2f} ms, old {old:.2f} ms; speed new/old {spread}"


class Tree:
    """The process of one source tree."""

    def __init__(self, python: str, source: Path, settings: dict):
        self._process = subprocess.Popen(
            [python, __file__, "--work", str(source), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.device = self._answer()

    def run(self, workload: str) -> float:
        print(workload, file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a tree's process ended with status {self._process.wait()}")
        return json.loads(line)


def work(source: str, settings: dict) -> None:
    """Answers workloads with the seconds of one run, by names that both trees have."""
    sys.path.insert(0, source)
    import time

    import torch

    from ember.backends.sampling import SamplingParams
    from ember.engine.engine import Engine
    from ember.model.architecture import Architecture
    from ember.model.checkpoint import random_decoder
    from ember.model.packed import quantise_decoder
    from ember.streaming import build, fast

    device, context, new_tokens = (settings[k] for k in ("device", "context", "new_tokens"))
    preset = settings["preset"]
    arch = Architecture.make(**TRIAL) if preset == "trial" else Architecture.make(preset)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    decoder = random_decoder(arch, 0, device, dtype)
    if settings["packed"] is not None:
        quantise_decoder(decoder, settings["packed"], skip=())
    generator = torch.Generator().manual_seed(0)
    shape = (settings["prompts"], context)
    prompts = torch.randint(arch.vocab_size, shape, generator=generator).tolist()
    sampling = SamplingParams(max_tokens=new_tokens, temperature=1.0, ignore_eos=True)
    engine = Engine(decoder, capacity=context + new_tokens, max_rows=settings["rows"])
    calls = {
        "prefill": lambda: [engine.prefill_prompt(prompts[0]) for _ in range(5)],
        "batch 1": lambda: engine.generate(prompts[:1], sampling, 1),
        "8 candidates": lambda: engine.generate(prompts[:1], sampling, 8),
        "many prompts": lambda: engine.generate(prompts, sampling, 8),
        "stream": lambda: stream(context, new_tokens),
    }

    def stream(window: int, count: int) -> float:
        """Seconds of the tokens after the window is full."""
        method = build.build(STREAM | {"peak": window, "compression_interval": 32})
        tokens = torch.randint(arch.vocab_size, (1, window - 1 + count), generator=generator)
        found = fast.run(decoder, tokens.to(device), method, prefill=window - 1, timed=True)
        return found.token_ms.sum() / 1e3

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    cuda = device == "cuda"
    print(json.dumps(torch.cuda.get_device_name() if cuda else "cpu"), flush=True)
    warm = set()
    for line in sys.stdin:
        name = line.strip()
        if name not in warm and name != "many prompts":  # which is warm after its first turn
            warm.add(name)
            calls[name]()
            calls[name]()  # prefills are recorded when a shape comes for the second time
        wait()
        began = time.perf_counter()
        found = calls[name]()
        wait()
        print(json.dumps(found if name == "stream" else time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2], json.loads(sys.argv[3]))
    else:
        main()
