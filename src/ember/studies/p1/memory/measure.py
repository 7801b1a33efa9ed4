"""What a model needs in memory: closed forms beside what was measured (P1-1.5).

The forms are those of this decoder: a prefill without gradients that keeps the last token's logits
alone, and AdamW over all parameters in the parameters' number format. On CUDA the allocator is
asked; on a CPU the tensors alive at once are counted (`ember.measure.live`).
"""

import gc
from collections.abc import Callable
from pathlib import Path

from ember.measure.device import resolve
from ember.measure.live import live_tensors
from ember.measure.memory import NotEnoughMemory, require
from ember.model.architecture import Architecture
from ember.studies.measured import blank, measured_on
from ember.studies.p1.memory.tables import MEMORY_BUDGET
from ember.studies.steps import makes

FORMULAS = {
    "weights": "parameters x dtype",
    "kv_per_token": "2 x layers x KV heads x head dimension x dtype",
    "kv_cache": "kv_per_token x batch x context",
    "activations": "batch x context x max(4 hidden + 3 intermediate, "
    "2 hidden + 3 query + 2 KV dimensions) x dtype",
    "gradients": "parameters x dtype",
    "optimizer": "2 moments x parameters x dtype + 4 bytes of step count a tensor",
}


@makes(MEMORY_BUDGET)
def memory_budget(
    *, model: str | Path, context: int, batch: int, device: str, dtype: str, seed: int = 0
) -> list[dict]:
    """Rows of MEMORY_BUDGET for prefills of `batch` prompts of `context` tokens, and for training.

    A part that does not fit is a skipped row with its prediction.
    """
    import torch

    from ember.model.folder import read_architecture

    device = resolve(device)
    arch, kind = read_architecture(model), getattr(torch, dtype)
    predicted = predict(arch, kind.itemsize, context, batch)
    measured, reasons = {}, {}

    def attempt(parts: tuple[str, ...], needs: int, measure: Callable[[], dict]) -> None:
        try:
            require(needs, device, f"measuring {' and '.join(parts)}")
            measured.update(measure())
        except NotEnoughMemory as error:
            reasons.update(dict.fromkeys(parts, str(error).splitlines()[0]))

    weights, kv = predicted["weights"], predicted["kv_cache"]
    attempt(
        ("weights", "kv_per_token", "kv_cache", "activations"),
        weights + kv + predicted["activations"],
        lambda: _measure_inference(model, arch, device, kind, context, batch, seed),
    )
    attempt(
        ("gradients", "optimizer"),
        weights + predicted["gradients"] + predicted["optimizer"],
        lambda: _measure_training(model, device, kind),
    )
    about = measured_on(model, device, dtype) | {"context": context, "batch": batch}
    method = "allocator" if device.startswith("cuda") else "live tensors"
    rows = []
    for part, formula in FORMULAS.items():
        row = blank(MEMORY_BUDGET, **about, part=part, formula=formula, method=method)
        row["predicted_bytes"] = predicted[part]
        if part in measured:
            row["measured_bytes"] = measured[part]
            row["ratio"] = measured[part] / predicted[part]
        else:
            row |= {"status": "skipped", "reason": reasons[part]}
        rows.append(row)
    return rows


def predict(arch: Architecture, dtype_bytes: int, context: int, batch: int) -> dict[str, int]:
    """Bytes of each part by its closed form."""
    parameters, h = arch.parameter_count(), arch.hidden_size
    query, kv = arch.num_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
    # In the MLP: the layer's input, what attention added, their sum, its norm; gate, up, product.
    wide = 4 * h + 3 * arch.intermediate_size
    # In the rotation of the queries: input and norm, queries, halves and result; keys and values.
    tall = 2 * h + 3 * query + 2 * kv
    per_token = arch.kv_bytes_per_token(dtype_bytes)
    return {
        "weights": parameters * dtype_bytes,
        "kv_per_token": per_token,
        "kv_cache": per_token * batch * context,
        "activations": batch * context * max(wide, tall) * dtype_bytes,
        "gradients": parameters * dtype_bytes,
        "optimizer": 2 * parameters * dtype_bytes + 4 * _tensors(arch),
    }


def _tensors(arch: Architecture) -> int:
    """Parameter tensors: four matrices of attention, three of the MLP, two norms a layer, …"""
    attention = 4 + 3 * arch.qkv_bias + arch.o_bias + 2 * arch.qk_norm
    mlp = 3 * (1 + arch.mlp_bias)
    return arch.num_layers * (attention + mlp + 2) + 2 + (not arch.tie_embeddings)


def _measure_inference(model, arch, device: str, kind, context: int, batch: int, seed: int) -> dict:
    import torch

    from ember.cache.contiguous import ContiguousCache
    from ember.model.checkpoint import load_decoder

    meter = _Meter(device)
    decoder = load_decoder(model, device, kind)
    weights = meter.held(decoder.parameters())
    cache = ContiguousCache(arch, batch, context, device, kind)
    kv = meter.held([cache.kv])
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(arch.vocab_size, (batch, context), generator=generator).to(device)
    with torch.no_grad():
        if meter.cuda:  # libraries take their workspace at the first call
            decoder(tokens[:, :2], cache=cache, last=1)
            cache.reset()
        peak = meter.peak(
            lambda: decoder.logits(decoder(tokens, cache=cache, last=1)),
            [*decoder.parameters(), cache.kv, tokens],
        )
    found = {"weights": weights, "kv_cache": kv, "activations": peak}
    return found | {"kv_per_token": kv // (batch * context)}


def _measure_training(model, device: str, kind) -> dict:
    """Gradients and optimizer state of all parameters, by making them."""
    import torch

    from ember.model.checkpoint import load_decoder

    meter = _Meter(device)
    decoder = load_decoder(model, device, kind)
    meter.held(decoder.parameters())
    for parameter in decoder.parameters():
        parameter.grad = torch.zeros_like(parameter)
    gradients = meter.held([parameter.grad for parameter in decoder.parameters()])
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=0.0, foreach=False)
    optimizer.step()
    state = [value for entry in optimizer.state.values() for value in entry.values()]
    return {"gradients": gradients, "optimizer": meter.held(t for t in state if torch.is_tensor(t))}


class _Meter:
    """Bytes held and bytes at most: by the allocator on CUDA, by counting tensors on a CPU."""

    def __init__(self, device: str):
        import torch

        self.device, self.cuda = device, device.startswith("cuda")
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            self.before = torch.cuda.memory_allocated(device)

    def held(self, tensors) -> int:
        """Bytes that came to be held since the last call: these tensors'."""
        import torch

        tensors = list(tensors)
        if not self.cuda:
            storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors}
            return sum(storage.nbytes() for storage in storages.values())
        gc.collect()
        now = torch.cuda.memory_allocated(self.device)
        self.before, grown = now, now - self.before
        return grown

    def peak(self, call, before) -> int:
        """Bytes that `call` holds at most, beyond the tensors that were there `before`."""
        import torch

        if not self.cuda:
            with live_tensors(before) as live:
                call()
            return live.peak_bytes
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        start = torch.cuda.memory_allocated(self.device)
        call()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - start
