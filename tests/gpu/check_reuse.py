"""Check on a CUDA device that kept prompts and policies' plans give what the eager decoder gives.

    PYTHONPATH=src:. python tests/gpu/check_reuse.py

About half a minute. Every kind of plan by packed weights, kernels and recordings beside the same
plan by the eager decoder; rollouts of prompts whose KV is kept beside rollouts without; and, at
Qwen3-4B's layer shape, what a plan costs on both. Prints one line a check. Not collected by pytest:
machines with a GPU may have nothing but torch.
"""

from functools import partial

import torch

from ember.backends.forward import Forward, hand_over
from ember.backends.packing import PackedDecoder
from ember.backends.sampling import SamplingParams
from ember.cache.contiguous import ContiguousCache
from ember.cache.radix import RadixCache
from ember.engine.engine import Engine
from ember.engine.prefill import PrefixPrefill
from ember.lora.adapter import LowRank
from ember.measure.clock import repeat
from ember.model.architecture import Architecture
from ember.model.checkpoint import random_decoder
from ember.policies.execute import PolicyRunner, PromptKV, run_plan
from ember.policies.kinds import PeriodicRefresh, UpdatableKV, UpdateLocality
from ember.policies.plan import Plan, Update
from ember.policies.prefill import PolicyPrefill

DEVICE = "cuda"
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_heads": 8,
    "num_kv_heads": 2,
    "head_dim": 64,
    "vocab_size": 1000,
    "max_positions": 4096,
}
LARGE = {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_heads": 32,
    "num_kv_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_positions": 4096,
    "tie_embeddings": True,
}
LAYERS, TOKENS, PREFIX, RANK = 4, 300, 200, 8
TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 0.1}  # of the length of what is compared


def main() -> None:
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}")
    for model_type in ("qwen3", "llama"):
        for dtype in TOLERANCE:
            check_plans(model_type, dtype)
    for dtype in TOLERANCE:
        check_kept(dtype)
    check_policies()
    measure_plans()


def make(model_type: str, dtype: torch.dtype, shape: dict, layers: int):
    arch = Architecture.make(model_type=model_type, num_layers=layers, **shape)
    return random_decoder(arch, 0, DEVICE, dtype)


def louder(decoder):
    """Weights so large that a wrong key or value shows."""
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return decoder


class Trained:
    """A random adapter of keys and values from layer 1 on; `step` moves B and merges the change."""

    def __init__(self, decoder, rank: int = RANK):
        self.weights = {
            (index, name): getattr(layer.self_attn, name).weight
            for index, layer in enumerate(decoder.layers)
            if index
            for name in ("k_proj", "v_proj")
        }
        self.a = {
            key: torch.randn(rank, w.shape[1], device=DEVICE, dtype=w.dtype) * w.shape[1] ** -0.5
            for key, w in self.weights.items()
        }
        self.b = {key: w.new_zeros(w.shape[0], rank) for key, w in self.weights.items()}

    @torch.no_grad()
    def step(self, size: float = 0.05) -> None:
        for key, b in self.b.items():
            change = torch.randn_like(b) * size
            self.weights[key] += change @ self.a[key]
            b += change

    @property
    def adapter(self) -> dict:
        return {key: LowRank(self.a[key], b.clone(), 1.0) for key, b in self.b.items()}


def plans(layers: int, tokens: int) -> dict[str, Plan]:
    half = layers // 2
    return {
        "full": Plan.full(layers),
        "restart": Plan.restart(layers, half),
        "restart of some tokens": Plan(half, layers, tokens // 2),
        "first layers": Plan(0, layers - 1, 0),
        "last tokens": Plan.last_tokens(layers, tokens, 3),
        "last token": Plan.last_tokens(layers, tokens),
        "head": Plan(layers, layers, 0),
        "shared prefix": Plan(0, layers, PREFIX, prefix_tokens=PREFIX),
        "refreshed": Plan.full(layers),
        "corrected": Plan.last_tokens(layers, tokens, correct=True),
    }


def off(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((mine.float() - theirs.float()).norm() / theirs.float().norm()).item()


@torch.inference_mode()
def check_plans(model_type: str, dtype: torch.dtype) -> None:
    """Every kind of plan, three times each: run, recorded and replayed."""
    torch.manual_seed(1)
    decoder = louder(make(model_type, dtype, SHAPE, LAYERS))
    trained = Trained(decoder)
    memory, staging = (
        ContiguousCache(decoder.arch, 1, TOKENS + 20, DEVICE, dtype) for _ in range(2)
    )
    fast = Forward(decoder, graphs=True, weights=PackedDecoder(decoder), memory=staging)
    slow = Forward(decoder)
    ids = torch.randint(0, 1000, (TOKENS,)).tolist()
    other = ids[:PREFIX] + torch.randint(0, 1000, (TOKENS - PREFIX,)).tolist()
    mine, theirs, donor = (PromptKV.empty(decoder, one) for one in (ids, ids, other))
    theirs.cache._fused = False  # corrected by torch's operators
    for name, plan in plans(LAYERS, TOKENS).items():
        # Only corrections need factors, and what keeps them is not recorded.
        keeps = name in ("refreshed", "corrected")
        adapter = trained.adapter if keeps else None
        more = {"boundaries": (LAYERS // 2,), "adapter": adapter}
        if plan.prefix_tokens:
            run_plan(slow, donor, Plan.full(LAYERS), **more)
            more["donor"] = donor
        worst = 0.0
        for _ in range(1 if plan.correct else 3):
            found = run_plan(fast, mine, plan, into=memory, **more)
            expected = run_plan(slow, theirs, plan, **more)
            pairs = [
                (found, expected),
                (mine.top, theirs.top),
                (mine.hidden[LAYERS // 2], theirs.hidden[LAYERS // 2]),
            ]
            for cache in (mine.cache, memory):
                pairs += [
                    pair
                    for layer in range(LAYERS)
                    for pair in zip(cache.read(layer), theirs.cache.read(layer), strict=True)
                ]
            if keeps:
                pairs.append((mine.cache.factors, theirs.cache.factors))
            worst = max(worst, *(off(*pair) for pair in pairs))
        print(f"{model_type}, {dtype}, plan {name}: {worst:.2g} from the eager decoder")
        assert worst < TOLERANCE[dtype], name
        trained.step()


def check_kept(dtype: torch.dtype) -> None:
    """Prompts that come back, alone and beside new ones, with refilled rows and stops."""
    torch.manual_seed(2)
    decoder = louder(make("qwen3", dtype, SHAPE, LAYERS))
    kept = Engine(decoder, capacity=400, prefill=PrefixPrefill(RadixCache(10**9)), max_rows=20)
    plain = Engine(decoder, capacity=400, max_rows=20)
    prompts = [torch.randint(0, 1000, (n,)).tolist() for n in (300, 17, 2, 129, 64, 1, 200)]
    for params in (
        SamplingParams(max_tokens=40, temperature=1.0, seed=3, n=5),
        SamplingParams(max_tokens=40, temperature=1.0, seed=3, n=5, stop_token_ids=(7, 70, 700)),
        SamplingParams(max_tokens=64, n=4, logprobs=2),
    ):
        new = [torch.randint(0, 1000, (50,)).tolist() for _ in range(3)]
        for batch in (prompts, prompts, new[:1] + prompts + new[1:]):
            mine, theirs = (engine.generate(batch, params) for engine in (kept, plain))
            same = [
                one.tokens == other.tokens
                for row, others in zip(mine, theirs, strict=True)
                for one, other in zip(row, others, strict=True)
            ]
            stats = kept.last_stats
            told = f"{stats.kept_prompts} of {stats.prompts} kept"
            print(f"rollout, {dtype}, {told}: {sum(same)} of {len(same)} candidates the same")
            # Scores that differ in the last bits may draw another token once in a long while.
            assert dtype != torch.float32 or sum(same) >= 0.97 * len(same)
    assert stats.kept_prompts >= len(prompts) - 1


def check_policies() -> None:
    """Rounds by policies, in kernels and by the eager backend, in float32."""
    for policy in (
        PeriodicRefresh(LAYERS, 3),
        UpdatableKV(LAYERS, RANK, 3),
        UpdateLocality(LAYERS, 1),
    ):
        found = []
        for backend in ("kernels", "eager"):
            torch.manual_seed(4)
            policy.reset()
            decoder = louder(make("qwen3", torch.float32, SHAPE, LAYERS))
            trained = Trained(decoder)
            runner = PolicyRunner(decoder, policy, adapter=trained.adapter)
            engine = Engine(
                decoder, capacity=400, prefill=PolicyPrefill(runner), backend=backend, max_rows=8
            )
            prompts = [torch.randint(0, 1000, (n,)).tolist() for n in (300, 64, 31)]
            for round in range(1, 6):
                engine.prefill.begin(round)
                done = engine.generate(prompts, SamplingParams(max_tokens=24, n=4))
                found.append([one.tokens for row in done for one in row])
                trained.step()
                update = Update(round + 1, frozenset(range(1, LAYERS)), f"round {round}")
                runner.on_update(update, trained.adapter)
                engine.set_weights_version(runner.version)
        half = len(found) // 2
        same = sum(a == b for a, b in zip(found[:half], found[half:], strict=True))
        print(f"policy {policy.id}: {same} of {half} rounds the same tokens as eagerly")
        assert same >= half - 1, policy.id


@torch.inference_mode()
def measure_plans(layers: int = 36, tokens: int = 2048) -> None:
    """Times of plans at Qwen3-4B's shape, by the engine's forward and by the eager decoder."""
    decoder = make("qwen3", torch.bfloat16, LARGE, layers)
    trained = Trained(decoder)
    memory, staging = (
        ContiguousCache(decoder.arch, 1, tokens, DEVICE, torch.bfloat16) for _ in range(2)
    )
    fast = Forward(decoder, graphs=True, weights=PackedDecoder(decoder), memory=staging)
    ids = torch.randint(0, 100000, (tokens,)).tolist()
    kv, half = PromptKV.empty(decoder, ids), layers // 2
    adapters = [trained.adapter, None]
    trained.step(0.001)
    adapters[1] = trained.adapter
    run_plan(fast, kv, Plan.full(layers), into=memory, boundaries=(half,), adapter=adapters[0])

    def plain(forward: Forward) -> None:
        memory.reset()
        there = forward.place(memory)
        forward(kv.tokens, there)
        hand_over(there, memory)

    def correct(_: Forward) -> None:
        kv.cache.correct(adapters[kv.cache.made_by[-1] is adapters[0]])

    def planned(plan: Plan, **more):
        def call(forward: Forward) -> None:
            if plan.correct:
                more["adapter"] = adapters[kv.cache.made_by[-1] is adapters[0]]
            where = {"into": memory} if forward is fast else {}
            run_plan(forward, kv, plan, boundaries=(half,), **where, **more)

        return call

    last = Plan.last_tokens(layers, tokens)
    calls = {
        "the engine's prefill": plain,
        "the correction alone": correct,
        "corrected, last token left to the rows": planned(
            Plan.last_tokens(layers, tokens, correct=True), leave_last=True
        ),
        "full": planned(Plan.full(layers)),
        f"restart at {half}": planned(Plan.restart(layers, half)),
        "last token": planned(last),
        "stale, last token left to the rows": planned(last, leave_last=True),
    }
    for name, call in calls.items():
        times = [
            sorted(repeat(partial(call, forward), warmup=4, repeats=7, device=DEVICE))[3]
            for forward in (fast, Forward(decoder))
        ]
        print(f"{tokens} tokens, {name}: {times[0]:.2f} ms, eagerly {times[1]:.2f} ms")


if __name__ == "__main__":
    main()
