"""A model of the workflow in 4-bit weights: packed directory, and errors by layer (L-1, L-8)."""

from collections.abc import Mapping
from pathlib import Path

from ember.measure.device import resolve
from ember.studies.lowbit.quantise.tables import QUANTISED
from ember.studies.measured import measured_on
from ember.studies.steps import makes


@makes(QUANTISED)
def quantise_model(
    *, model: str | Path, format: str, packed: str | Path, runtime: Mapping
) -> list[dict]:
    """Rows of QUANTISED for one format, the head too; writes the model directory `packed`."""
    from torch import nn

    from ember.model.checkpoint import load_decoder
    from ember.model.folder import weights_kind
    from ember.model.packed import PackedLinear, quantise_decoder
    from ember.model.packed_folder import save_packed

    device = resolve(runtime["device"])
    decoder = load_decoder(model, device, check_finite=True)
    dense = {n: m.weight for n, m in decoder.named_modules() if type(m) is nn.Linear}
    dense.setdefault("lm_head", decoder.embed_tokens.weight)
    quantise_decoder(decoder, format, skip=())
    rows = []
    for name, layer in decoder.named_modules():
        if not isinstance(layer, PackedLinear):
            continue
        exact, matrix = dense[name].detach().double(), layer.matrix
        found = matrix.dense().double()
        error, spread = found - exact, exact.std()
        rows.append(
            {
                "format": format,
                "layer": name,
                "out": len(exact),
                "inner": exact.shape[1],
                "weight_std": spread.item(),
                "kurtosis": (((exact - exact.mean()) / spread) ** 4).mean().item(),
                "relative_error": (error.norm() / exact.norm()).item(),
                "max_error": error.abs().max().item(),
                "zeros": (found == 0).double().mean().item(),
                "bits": 8 * matrix.nbytes / exact.numel(),
                "packed_bytes": matrix.nbytes,
                **measured_on(model, device, "float32"),
            }
        )
    save_packed(decoder, packed, weights=weights_kind(model), about={"format": format})
    return rows
