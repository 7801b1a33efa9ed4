"""Check the engine on a CUDA device: correctness with asserts, then speed at the Qwen3-4B shape.

    PYTHONPATH=src:. python tests/gpu/check_engine.py [--no-speed] [--preset qwen3-4b]
    PYTHONPATH=src:. python tests/gpu/check_engine.py --only gemma3_text gpt_neox --no-speed

Eager decoding in the same number format is the truth. Prints one line a check; the speeds are those
of random weights, which time an engine and say nothing about quality. Not collected by pytest:
machines with a GPU may have nothing but torch.
"""

import argparse
import copy
import dataclasses
import time

import torch
from numpy.linalg import norm

from ember.backends.forward import Forward
from ember.backends.packing import PackedDecoder
from ember.backends.sampling import SamplingParams, cut_tail
from ember.cache.contiguous import ContiguousCache
from ember.engine.engine import Engine
from ember.measure.clock import PhaseClock, repeat
from ember.measure.statistics import summarise
from ember.model.architecture import Architecture
from ember.model.checkpoint import random_decoder
from ember.model.decoder import Decoder
from ember.model.presets import PRESETS
from ember.streaming import build, fast, stream
from tests.backends.steps import backend_of, step_through

DEVICE = "cuda"
SMALL = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_layers": 3,
    "num_heads": 8,
    "num_kv_heads": 2,
    "head_dim": 64,
    "vocab_size": 1000,
    "max_positions": 4096,
}
SHAPES = {  # by model type, and what is special
    "qwen3": {},
    "qwen2": {},
    "llama": {},
    # A large embedding that is the head as well repeats the last token, whatever is drawn.
    "gemma3_text": {"sliding_window": 100, "sliding_layers": (0, 2), "tie_embeddings": False},
    "gemma3_text of 256": {"head_dim": 256, "num_heads": 4, "num_kv_heads": 1},
    "gpt_neox": {"num_kv_heads": 8},
    "gpt_neox of 80": {"num_kv_heads": 8, "head_dim": 80},
    "gpt_neox of 80, one after the other": {
        "num_kv_heads": 8,
        "head_dim": 80,
        "parallel_residual": False,
    },
}
# Largest error of a logits vector relative to its length.
# bfloat16 has 8 bits, and weights this wild amplify what they lose.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.06}
OWN_ERROR = 1.25  # times the eager decoder's error in the same format, of steps in 16 bits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-speed", action="store_true", help="checks only")
    parser.add_argument("--only", nargs="+", default=[*SHAPES], choices=[*SHAPES], metavar="SHAPE")
    parser.add_argument("--preset", default="qwen3-4b", choices=sorted(PRESETS))
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}")
    for dtype in (torch.float32, torch.bfloat16):
        for name in arguments.only:
            model_type, _, special = name.partition(" of ")
            arch = Architecture.make(model_type=model_type, **SMALL | SHAPES[name])
            decoder = wild(random_decoder(arch, 0, DEVICE, dtype))
            # Every family of products; of other heads every family of attention.
            for batch in (1, 17) if special else (1, 4, 17, 100, 140):
                check_steps(decoder, batch)
            check_chunks(decoder)
            check_packed_prefill(decoder)
            if name in ("llama", "gemma3_text", "gpt_neox"):
                check_generation(decoder)
                check_shared_prompts(decoder)
                check_refilling(decoder)
            if model_type in ("gpt_neox", "qwen3"):
                check_stream(decoder)
    check_weight_updates()
    for model_type in ("gemma3_text", "gpt_neox", "qwen3"):
        check_eager(model_type)
    arch = Architecture.make(arguments.preset)
    decoder = random_decoder(arch, 0, DEVICE, torch.bfloat16)
    check_steps(decoder, 1, tokens=1030, prefilled=1024)
    if not arguments.no_speed:
        time_engine(decoder, arguments.preset)
    print("all checks passed")


def wild(decoder: Decoder) -> Decoder:
    """Weights large enough that attention is far from uniform, norms and biases not trivial."""
    generator = torch.Generator(DEVICE).manual_seed(1)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            is_scale = name.endswith("norm.weight") and decoder.arch.norm != "rms_offset"
            centre = 1.0 if is_scale else 0.0
            parameter.normal_(centre, 0.3 if parameter.ndim == 1 else 0.1, generator=generator)
    return decoder


def draw(decoder: Decoder, batch: int, tokens: int) -> torch.Tensor:
    generator = torch.Generator(DEVICE).manual_seed(2)
    shape = (batch, tokens)
    return torch.randint(decoder.arch.vocab_size, shape, generator=generator, device=DEVICE)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest relative error of a row's vector."""
    found, expected = found.float(), expected.float()
    return ((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max().item()


def report(what: str, error: float, limit: float) -> None:
    print(f"{what}: {error:.2e} (allowed {limit:.2g})", flush=True)
    assert error <= limit, what


@torch.inference_mode()
def check_steps(decoder: Decoder, batch: int, tokens: int = 300, prefilled: int = 250) -> None:
    """Logits of the captured graphs and of the same kernels without, against the eager decoder's,
    across a boundary of the attention's parts."""
    dtype = decoder.embed_tokens.weight.dtype
    allowed = TOLERANCE[dtype]
    sequence = draw(decoder, batch, tokens)
    truth = ContiguousCache(decoder.arch, batch, tokens, DEVICE, dtype)
    expected = decoder.logits(decoder(sequence, cache=truth)[:, prefilled - 1 :]).transpose(0, 1)
    if dtype != torch.float32:
        # Both round; which of them is off is said by the same weights in float32.
        exact = copy.deepcopy(decoder).float()
        eager, expected = expected, exact.logits(exact(sequence)[:, prefilled - 1 :])
        expected = expected.transpose(0, 1)
        allowed = OWN_ERROR * relative(eager, expected)
        del exact
    for graphs in (True, False):
        made = backend_of("kernels", decoder, rows=batch, capacity=tokens, graphs=graphs)
        name = (
            f"{decoder.arch.model_type} {dtype} batch {batch} {'graph' if graphs else 'no graph'}"
        )
        found = step_through(made, sequence, prefilled)
        report(f"{name}: logits", relative(found, expected), allowed)
        own = made.cache.rows[0, :, :batch, :, : tokens - prefilled].flatten(3)
        error = relative(own, truth.kv[0, ..., prefilled:, :].flatten(3))
        report(f"{name}: cache of layer 0", error, TOLERANCE[dtype])


@torch.inference_mode()
def check_chunks(decoder: Decoder) -> None:
    """A prefill in pieces (causal alignment to the lower right) equals one in one piece."""
    dtype = decoder.embed_tokens.weight.dtype
    sequence = draw(decoder, 2, 130)
    expected = decoder(sequence)
    cache = ContiguousCache(decoder.arch, 2, 130, DEVICE, dtype)
    found = [decoder(piece, cache=cache) for piece in sequence.split([50, 1, 79], 1)]
    name = f"{decoder.arch.model_type} {dtype}: prefill in pieces"
    report(name, relative(torch.cat(found, 1), expected), TOLERANCE[dtype])


@torch.inference_mode()
def check_packed_prefill(decoder: Decoder) -> None:
    """A prefill by packed weights and kernels, in pieces, against the decoder's."""
    dtype = decoder.embed_tokens.weight.dtype
    tokens = draw(decoder, 2, 530)
    truth, cache = (ContiguousCache(decoder.arch, 2, 530, DEVICE, dtype) for _ in range(2))
    expected = decoder.logits(decoder(tokens, cache=truth)[:, -1:])[:, 0]
    allowed = TOLERANCE[dtype]
    if dtype != torch.float32:
        exact = copy.deepcopy(decoder).float()
        eager, expected = expected, exact.logits(exact(tokens)[:, -1:])[:, 0]
        allowed = OWN_ERROR * relative(eager, expected)
    forward = Forward(decoder, weights=PackedDecoder(decoder))
    for piece in tokens.split([300, 1, 229], 1):
        found = forward(piece, cache)
    name = f"{decoder.arch.model_type} {dtype}: packed prefill in pieces"
    report(name, relative(found, expected), allowed)
    error = relative(cache.kv[0].flatten(3), truth.kv[0].flatten(3))
    report(f"{name}: cache of layer 0", error, TOLERANCE[dtype])


def check_generation(decoder: Decoder) -> None:
    """Candidates, batches and stop tokens: a graph and no graph choose the same tokens."""
    prompts = [draw(decoder, 1, n)[0].tolist() for n in (20, 33, 20)]
    free = SamplingParams(max_tokens=40, temperature=1.0, seed=1)
    completions = {}
    for graphs in (True, False):
        engine = Engine(decoder, capacity=100, graphs=graphs)
        found = engine.generate(prompts, free, num_candidates=2)
        stop = found[0][0].tokens[20]
        limited = SamplingParams(max_tokens=40, temperature=1.0, seed=1, stop_token_ids=(stop,))
        cut = engine.generate(prompts, limited, num_candidates=2)
        for whole, short in zip(sum(found, []), sum(cut, []), strict=True):  # noqa: RUF017
            assert whole.tokens[: len(short.tokens)] == short.tokens
            assert stop not in short.tokens[:-1]
            assert (short.finish_reason == "stop") == (short.tokens[-1] == stop)
        completions[graphs] = [c.tokens for candidates in found for c in candidates]
    assert completions[True] == completions[False]
    print(f"{decoder.embed_tokens.weight.dtype}: generation with candidates and stops", flush=True)


def check_shared_prompts(decoder: Decoder) -> None:
    """Candidates that read their prompt's KV in the arena are what the eager backend makes of
    copies: greedy tokens in float32, and log-probabilities of one eager pass in both formats."""
    prompts = [draw(decoder, 1, n)[0].tolist() for n in (300, 300, 40)]
    greedy, free = SamplingParams(max_tokens=20), SamplingParams(max_tokens=20, temperature=1.0)
    shared, copied = (Engine(decoder, capacity=330, backend=name) for name in ("kernels", "eager"))
    dtype = decoder.embed_tokens.weight.dtype
    if dtype == torch.float32:
        found, expected = (
            [[c.tokens for c in row] for row in e.generate(prompts, greedy)]
            for e in (shared, copied)
        )
        assert found == expected
    worst = 0.0
    completions = shared.generate(prompts, free, num_candidates=5)
    for prompt, row in zip(prompts, completions, strict=True):
        assert len({c.tokens for c in row}) > 1
        for completion in row:
            tokens = torch.tensor([prompt + list(completion.tokens)], device=DEVICE)
            with torch.inference_mode():
                logits = decoder.logits(decoder(tokens))[0, len(prompt) - 1 : -1]
            eager = logits.float().log_softmax(-1).gather(1, tokens[0, len(prompt) :, None])[:, 0]
            ours = torch.tensor(completion.logprobs, device=DEVICE)
            worst = max(worst, ((ours - eager).norm() / logits.float().norm(dim=1).mean()).item())
    report(f"{dtype}: log-probabilities of candidates", worst, TOLERANCE[dtype])


def check_refilling(decoder: Decoder) -> None:
    """Rows that are refilled: a few at a time, in little memory, with parameters of their own, give
    what the eager decoder says; in float32 the tokens of many rows at once."""
    dtype = decoder.embed_tokens.weight.dtype
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 300, (12,), generator=generator).tolist()
    prompts = [draw(decoder, 1, n)[0].tolist() for n in lengths]
    free = SamplingParams(n=3, max_tokens=60, temperature=1.0, seed=4)
    whole = Engine(decoder, capacity=400).generate(prompts, free)
    stop = whole[0][0].tokens[20]
    params = [
        dataclasses.replace(
            free,
            n=1 + number % 4,
            max_tokens=20 + 5 * (number % 5),
            stop_token_ids=(stop,),
            **({}, {"top_p": 0.9}, {"temperature": 0.7, "top_k": 20}, {"logprobs": 2})[number % 4],
        )
        for number in range(12)
    ]
    token = decoder.arch.kv_bytes_per_token(decoder.embed_tokens.weight.element_size())
    found, worst = {}, 0.0
    for rows, tokens in ((5, 1100), (40, 10**5)):
        engine = Engine(decoder, capacity=400, max_rows=rows, cache_bytes=token * tokens)
        found[rows] = engine.generate(prompts, params)
        stats = engine.last_stats
        assert stats.slots == min(rows, sum(p.n for p in params))
        assert stats.prefills == 12
        print(f"  {stats.steps} steps, occupied {stats.occupancy:.2f}", flush=True)
        for prompt, wanted, row in zip(prompts, params, found[rows], strict=True):
            assert len(row) == wanted.n
            for c in row:
                stopped = c.tokens[-1] == stop
                assert c.finish_reason == ("stop" if stopped else "length")
                assert stopped or len(c.tokens) == wanted.max_tokens
                ids = torch.tensor([prompt + list(c.tokens)], device=DEVICE)
                with torch.inference_mode():
                    logits = decoder.logits(decoder(ids))[0, len(prompt) - 1 : -1].float()
                at = ids[0, len(prompt) :, None]
                for ours, scores in (
                    (c.raw_logprobs, logits.log_softmax(-1)),
                    (c.logprobs, cut_tail(logits / wanted.temperature, wanted).log_softmax(-1)),
                ):
                    if ours is c.logprobs and wanted.cuts and dtype != torch.float32:
                        continue  # which token is the last one kept may differ
                    eager = scores.gather(1, at)[:, 0]
                    error = (torch.tensor(ours, device=DEVICE) - eager).norm()
                    worst = max(worst, (error / logits.norm(dim=1).mean()).item())
                if c.alternatives is not None:
                    assert {len(a) for a in c.alternatives} == {2}
    if dtype == torch.float32:
        assert [[c.tokens for c in row] for row in found[5]] == [
            [c.tokens for c in row] for row in found[40]
        ]
    report(f"{dtype}: log-probabilities of refilled rows", worst, TOLERANCE[dtype])


STREAMS = (
    {"name": "streaming_llm", "peak": 200},
    {"name": "lazy_prune", "peak": 200, "compression_interval": 32},
    {
        "name": "refresh",
        "peak": 200,
        "compression_interval": 32,
        "max_drop": 8,
        "refresh_budget": 16,
        "selector": "uniform",
    },
)


def check_stream(decoder: Decoder) -> None:
    """Losses of a stream whose tokens drop out between replays, against the eager cache: with the
    soft ring and without, with graphs and without, in more kernels, positions counted anew."""
    dtype, tokens = decoder.embed_tokens.weight.dtype, draw(decoder, 1, 600)
    far, fast.FAR = fast.FAR, 300
    exact = copy.deepcopy(decoder).float()
    for spec in STREAMS:
        method = build.build(spec)
        expected, allowed = stream.run(exact, tokens, method).nll[:, 179:], 1e-4
        if dtype != torch.float32:
            eager = stream.run(decoder, tokens, method).nll[:, 179:]
            allowed = OWN_ERROR * norm(eager - expected) / norm(expected)
        for options in ({}, {"spare": 0}, {"graphs": False}, {"fused": frozenset()}):
            found = fast.run(decoder, tokens, method, prefill=180, **options)
            assert ("graph" in found.path) == options.get("graphs", True), found.path
            error = norm(found.nll[:, 179:] - expected) / norm(expected)
            what = f"{decoder.arch.model_type} {dtype}: stream, {spec['name']}, {found.path}"
            report(f"{what}, {options}", error, allowed)
    fast.FAR = far


def check_eager(model_type: str) -> None:
    """The eager backend on the device: its own n of each prompt, few rows, and to the last bit
    under other batch compositions."""
    arch = Architecture.make(model_type=model_type, **SMALL | SHAPES[model_type])
    decoder = wild(random_decoder(arch, 0, DEVICE))
    prompts = [draw(decoder, 1, n)[0].tolist() for n in (20, 133, 20)]
    params = [SamplingParams(n=n, max_tokens=20 + n, temperature=1.0, seed=1) for n in (3, 1, 2)]
    options = {"capacity": 200, "batch_invariant": True}
    engine = Engine(decoder, **options)
    found = engine.generate(prompts, params)
    assert engine.backend.name == "eager"
    assert [len(row) for row in found] == [3, 1, 2]
    assert Engine(decoder, max_rows=2, **options).generate(prompts, params) == found
    for prompt, wanted, row in zip(prompts, params, found, strict=True):
        [alone] = engine.generate([prompt], wanted, 1)
        assert alone == row[:1]
        for c in row:
            with torch.inference_mode():
                ids = torch.tensor([prompt + list(c.tokens)], device=DEVICE)
                logits = decoder.logits(decoder(ids))[0, len(prompt) - 1 : -1].log_softmax(-1)
            eager = logits.gather(1, ids[0, len(prompt) :, None])[:, 0]
            error = (torch.tensor(c.raw_logprobs, device=DEVICE) - eager).abs().max().item()
            assert error < 1e-2, error
    print(f"{model_type}: eager rows, to the last bit under other batch compositions", flush=True)


@torch.inference_mode()
def check_weight_updates() -> None:
    """A captured graph sees weights that were changed in place."""
    decoder = wild(random_decoder(Architecture.make(model_type="qwen3", **SMALL), 0, DEVICE))
    made, tokens = backend_of("kernels", decoder, rows=1, capacity=64), draw(decoder, 1, 9)
    step_through(made, tokens, 4)  # records the graphs
    made.leave([], 0)
    for parameter in decoder.parameters():
        parameter.mul_(1.1)
    expected = decoder.logits(decoder(tokens)[:, 3:]).transpose(0, 1)
    error = relative(step_through(made, tokens, 4), expected)
    report("changed weights in a graph", error, TOLERANCE[torch.float32])


def time_engine(decoder: Decoder, name: str) -> None:
    """Prefill and decode times; the first engine call of a size captures and is not counted."""
    torch.cuda.reset_peak_memory_stats(DEVICE)
    weights = sum(p.numel() * p.element_size() for p in decoder.parameters())
    print(f"{name}: weights {weights / 1e9:.2f} GB")
    for context in (2048, 4096):
        prompt = draw(decoder, 1, context)[0].tolist()
        engine = Engine(decoder, capacity=context + 128)
        samples = repeat(
            lambda engine=engine, prompt=prompt: engine.prefill_prompt(prompt),
            warmup=2,
            repeats=5,
            device=DEVICE,
        )
        print(f"prefill {context}: {summarise(samples)['median']:.1f} ms")
        for candidates in (1, 8):
            sampling = SamplingParams(max_tokens=128, temperature=1.0)
            began = time.perf_counter()
            engine.generate([prompt], sampling, num_candidates=candidates)
            torch.cuda.synchronize()
            first = time.perf_counter() - began
            clock = PhaseClock(DEVICE)
            began = time.perf_counter()
            engine.generate([prompt], sampling, num_candidates=candidates, clock=clock)
            torch.cuda.synchronize()
            total = time.perf_counter() - began
            times = clock.times_ms()
            per_step = times["decode"] / 127
            phases = ", ".join(f"{phase} {ms:.1f} ms" for phase, ms in times.items())
            print(
                f"context {context}, {candidates} candidates, 128 tokens: "
                f"{candidates * 1e3 / per_step:.0f} tok/s decode ({per_step:.2f} ms a step, "
                f"{weights / per_step / 1e6:.0f} GB/s of weights); {phases}; "
                f"total {total * 1e3:.0f} ms (first call {first:.1f} s)",
                flush=True,
            )
    print(f"peak memory {torch.cuda.max_memory_allocated(DEVICE) / 1e9:.1f} GB")


if __name__ == "__main__":
    main()
