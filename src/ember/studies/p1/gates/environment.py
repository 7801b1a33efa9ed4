"""Gate: the environment is recorded, and the device and number format are there (P1-0.5)."""

from ember.studies.p1.gates.row import GateFailed, passed
from ember.studies.p1.gates.tables import GATES
from ember.studies.steps import makes


@makes(GATES)
def check_environment(*, device: str, dtype: str, seed: int) -> list[dict]:
    """The gate's row. Raises `GateFailed` for a missing device or unusable dtype.

    The CPU is there and needs no proof: torch is imported for an accelerator only.
    """
    from ember.measure.system import hardware, versions

    facts, found = hardware(), versions()
    if "torch" not in found:
        raise GateFailed("torch is not installed here. Run `make .venv/installed`.")
    tf32, cuda = _accelerator(device, dtype) if device != "cpu" else (False, None)
    parts = [
        f"device {device}",
        f"GPU {_gpus(facts) or 'none'}",
        f"CPU {facts.get('cpu', 'unknown')} ({facts.get('cores', '?')} cores)",
        f"dtype {dtype}",
        f"TF32 {'on' if tf32 else 'off'}",
        f"seed {seed}",
        *(f"{name} {found[name]}" for name in ("python", "torch", "transformers") if name in found),
        f"CUDA {cuda or 'none'}",
    ]
    return [passed("environment", "; ".join(parts))]


def _accelerator(device: str, dtype: str) -> tuple[bool, str | None]:
    """Whether TF32 is on, and CUDA's version, after a product on the device."""
    import torch

    from ember.measure.device import resolve

    resolve(device)
    values = torch.ones(4, device=device, dtype=getattr(torch, dtype))
    if not bool(torch.isfinite(values @ values)):
        raise GateFailed(
            f"{dtype} arithmetic on {device} gives a number that is not finite. "
            "Choose another dtype in the scale's file."
        )
    return torch.backends.cuda.matmul.allow_tf32, torch.version.cuda


def _gpus(facts: dict) -> str:
    found = facts.get("gpus") or []
    return ", ".join(f"{gpu['name']} (driver {gpu.get('driver', 'unknown')})" for gpu in found)
