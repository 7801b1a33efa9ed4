"""What all rows of one measurement share."""

from pathlib import Path


def measured_on(model: str | Path, device: str, dtype: str) -> dict:
    """What every row measured on a model says: device, dtype, model, weights, evidence."""
    from ember.model.folder import weights_kind

    return {
        "device": device,
        "dtype": dtype,
        "model": Path(model).name,
        "weights": weights_kind(model),
        "evidence": "measured",
    }
