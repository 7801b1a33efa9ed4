"""Gate: the environment is recorded, and the device and number format are there (P1-0.5)."""

from ember.experiments.gates.row import GateFailed, passed


def check_environment(*, device: str, dtype: str, seed: int) -> list[dict]:
    """The gate's row. Raises `GateFailed` for a missing device or unusable dtype."""
    import torch

    from ember.measure.device import resolve
    from ember.measure.system import hardware, versions

    resolve(device)
    values = torch.ones(4, device=device, dtype=getattr(torch, dtype))
    if not bool(torch.isfinite(values @ values)):
        raise GateFailed(
            f"{dtype} arithmetic on {device} gives a number that is not finite. "
            "Choose another dtype in the scale's file."
        )
    facts = hardware()
    tf32 = torch.backends.cuda.matmul.allow_tf32 if device == "cuda" else False
    found = versions()
    parts = [
        f"device {device}",
        f"GPU {_gpus(facts) or 'none'}",
        f"CPU {facts.get('cpu', 'unknown')} ({facts.get('cores', '?')} cores)",
        f"dtype {dtype}",
        f"TF32 {'on' if tf32 else 'off'}",
        f"seed {seed}",
        *(f"{name} {found[name]}" for name in ("python", "torch", "transformers") if name in found),
        f"CUDA {torch.version.cuda or 'none'}",
    ]
    return [passed("environment", "; ".join(parts))]


def _gpus(facts: dict) -> str:
    found = facts.get("gpus") or []
    return ", ".join(f"{gpu['name']} (driver {gpu.get('driver', 'unknown')})" for gpu in found)
