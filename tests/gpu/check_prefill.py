"""Check on a CUDA device that recorded prefills and prefix reuse change no result.

    PYTHONPATH=src python tests/gpu/check_prefill.py

An engine without graphs and without a prefix cache is the truth. Prints one line a check. Not
collected by pytest: machines with a GPU may have nothing but torch.
"""

import torch

from ember.backends.sampling import SamplingParams
from ember.cache.radix import RadixCache
from ember.engine.engine import Engine
from ember.engine.prefill import PrefixPrefill
from ember.model import decoder as model
from ember.model.architecture import Architecture
from ember.model.checkpoint import random_decoder

DEVICE = "cuda"
ARCH = Architecture.make(
    model_type="qwen3",
    hidden_size=256,
    intermediate_size=512,
    num_layers=3,
    num_heads=8,
    num_kv_heads=2,
    head_dim=64,
    vocab_size=1000,
    max_positions=4096,
)
KERNEL_SHAPES = [  # rows, query heads, KV heads, D, new tokens, cached tokens
    (1, 32, 8, 128, 1024, 1024),
    (1, 32, 8, 128, 1000, 1049),
    (4, 32, 8, 128, 512, 512),
    (2, 14, 2, 64, 300, 77),
    (3, 4, 2, 32, 65, 1),
    (1, 7, 7, 128, 129, 0),
]
# Largest absolute difference of logits, keys and values; bfloat16 has 8 bits.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}


def main() -> None:
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}")
    for tokens, past in ((2048, 2048), (1024, 3072), (1500, 3001)):
        check_attention(tokens, past)
    for shape in KERNEL_SHAPES:
        check_kernel(*shape)
    for dtype in TOLERANCE:
        check_reuse(dtype)


@torch.inference_mode()
def check_attention(tokens: int, past: int) -> None:
    """Attention in two parts is as near to float32 as bfloat16 allows."""
    q = torch.randn(1, 32, tokens, 128, device=DEVICE, dtype=torch.bfloat16)
    k, v = torch.randn(2, 1, 8, past + tokens, 128, device=DEVICE, dtype=torch.bfloat16).unbind()
    assert tokens * (past + tokens) >= model.TWO_PARTS_PAY
    assert model._cudnn_attends(q, k, v)
    exact = model.attend(q.float(), k.float(), v.float())
    worst = (model.attend(q, k, v) - exact).abs().max().item()
    print(f"attention, {tokens} after {past}: {worst:.2g} from float32")
    # One rounding of values around 0.25 is 0.001; a wrong merge is off by 0.005 and more.
    assert worst < 0.003


@torch.inference_mode()
def check_kernel(rows: int, heads: int, kv_heads: int, dim: int, tokens: int, past: int) -> None:
    """The kernel for new tokens, over a larger cache whose rest nobody may read."""
    from ember.backends.cuda.causal_attention import attend_causal

    for dtype in (torch.bfloat16, torch.float16):
        q = torch.randn(rows, tokens, heads, dim, device=DEVICE, dtype=dtype)
        kv = torch.randn(2, rows, kv_heads, past + tokens + 100, dim, device=DEVICE, dtype=dtype)
        kv[..., past + tokens :, :] = torch.nan
        k, v = kv[..., : past + tokens, :].unbind()
        exact = model.attend(q.transpose(1, 2).float(), k.float(), v.float()).transpose(1, 2)
        for pdl in (False, True):
            off = ((attend_causal(q, k, v, pdl=pdl) - exact).norm() / exact.norm()).item()
            shape = f"{rows} x {tokens} after {past}, heads {heads}/{kv_heads} of {dim}"
            print(f"attention kernel, {dtype}, {shape}: {off:.2g} from float32")
            assert off < 0.003


def check_reuse(dtype: torch.dtype) -> None:
    """Any prompt, seen once or often, before and after updates, with and without reuse."""
    torch.manual_seed(0)
    decoder = random_decoder(ARCH, 0, DEVICE, dtype)
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)  # so that a wrong key or value shows
    reusing = Engine(decoder, capacity=600, prefill=PrefixPrefill(RadixCache(10**9)))
    plain = Engine(decoder, capacity=600, graphs=False)
    greedy, worst = SamplingParams(max_tokens=8), 0.0
    for update in range(5):
        for head in ([1] * 200, [5, 6] * 100):
            prompts = [head + torch.randint(0, 1000, (100,)).tolist() for _ in range(3)]
            for prompt in prompts:
                ours, theirs = reusing.prefill_prompt(prompt), plain.prefill_prompt(prompt)
                for a, b in (
                    (ours.logits, theirs.logits),
                    (ours.cache.segment(0, 0, 300), theirs.cache.segment(0, 0, 300)),
                ):
                    worst = max(worst, (a - b).abs().max().item())
            ours, theirs = (
                engine.generate(prompts, greedy, num_candidates=2) for engine in (reusing, plain)
            )
            if dtype == torch.float32:
                assert [[c.tokens for c in row] for row in ours] == [
                    [c.tokens for c in row] for row in theirs
                ]
        with torch.no_grad():
            decoder.layers[0].mlp.up_proj.weight.mul_(1.1)
        for engine in (reusing, plain):
            engine.set_weights_version(str(update))
    print(f"reuse and recordings, {dtype}: {worst:.2g} from eager and without")
    assert worst < TOLERANCE[dtype]


if __name__ == "__main__":
    main()
