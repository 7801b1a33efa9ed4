"""Which backend serves which case, and what is said of the others."""

import importlib.util

import pytest
import torch

from ember.backends import select as module
from ember.backends.select import Case, Unsupported, select, unsupported_reason
from ember.model.architecture import Architecture
from ember.model.presets import PRESETS
from tests.tiny import ARCHITECTURES, tiny, wild

CPU = torch.device("cpu")
with_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed here"
)


def case(model_type: str = "qwen3", **fields) -> Case:
    named = {k: fields.pop(k) for k in list(fields) if k in Case.__dataclass_fields__}
    about = {"arch": tiny(model_type, **fields), "device": CPU, "dtype": torch.float32}
    return Case(**about | named)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_on_the_cpu_compiled_code_runs_every_architecture(model_type):
    found = select(Case.of(wild(model_type)))
    assert found.name == "compiled"
    assert found.reasons == {"kernels": "the weights are not on a CUDA device"}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"dtype": torch.float16}, "no compiled code for torch.float16"),
        ({"dtype": torch.float64}, "no compiled code for torch.float64"),
        ({"device": torch.device("meta")}, "not on the CPU"),
        ({"formats": frozenset({"dense", "mxfp4"})}, "no form for mxfp4 weights"),
    ],
)
def test_what_compiled_code_does_not_serve(fields, reason):
    assert reason in unsupported_reason("compiled", case(**fields))
    assert unsupported_reason("eager", case(**fields)) is None


@with_triton
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"head_dim": 32}, None),
        ({"head_dim": 32, "model_type": "qwen2", "rows": 1024}, None),
        ({"head_dim": 32, "dtype": torch.bfloat16, "rows": 1025}, "1025 rows is above 1024"),
        ({"head_dim": 80, "model_type": "gpt_neox"}, None),
        ({"head_dim": 256, "model_type": "gemma3_text"}, None),
        ({"head_dim": 258}, "head dimension of 258"),
        ({"norm": "layer"}, "norms over heads are LayerNorms"),
        ({"head_dim": 32, "num_heads": 64, "num_kv_heads": 2}, "32 query heads share"),
        ({"head_dim": 32, "dtype": torch.float64}, "no kernels for torch.float64"),
        ({"head_dim": 32, "batch_invariant": True}, "depends on the batch"),
        ({"head_dim": 32, "formats": frozenset({"int8"})}, "no form for int8 weights"),
    ],
)
def test_which_cases_the_kernels_serve(fields, reason, monkeypatch):
    monkeypatch.setattr(module, "interpreted", lambda: True)  # as if there were a device
    found = unsupported_reason("kernels", case(**fields))
    assert found is None if reason is None else reason in found
    chosen = select(case(**fields))
    assert (chosen.name == "kernels") == (reason is None)


def test_without_triton_another_backend_serves(monkeypatch):
    monkeypatch.setattr(module, "interpreted", lambda: True)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    found = select(case(head_dim=32))
    assert (found.name, found.reasons["kernels"]) == ("compiled", "Triton is not installed")


@with_triton
def test_batch_invariance_on_a_device_is_the_decoders(monkeypatch):
    monkeypatch.setattr(module, "interpreted", lambda: True)
    monkeypatch.setattr(module, "why_no_code", lambda dtype: "no compiler")
    found = select(case(head_dim=32, batch_invariant=True))
    assert found.name == "eager"
    assert "last bits" in found.reasons["kernels"]
    with pytest.raises(Unsupported, match="kernels does not serve this: how they cut"):
        select(case(head_dim=32, batch_invariant=True), "kernels")


def test_a_backend_asked_for_by_name_runs_or_is_refused():
    assert select(case(), "eager").reasons == {
        "kernels": "the weights are not on a CUDA device",
        "compiled": "the caller asked for eager",
    }
    with pytest.raises(Unsupported, match=r"not on a CUDA device(.|\n)*Leave backend= out"):
        select(case(), "kernels")
    with pytest.raises(Unsupported, match="no backend 'host'"):
        select(case(), "host")


@with_triton
@pytest.mark.parametrize("preset", PRESETS)
def test_both_run_every_preset(preset, monkeypatch):
    monkeypatch.setattr(module, "interpreted", lambda: True)
    arch = Architecture.make(preset)
    for backend in ("compiled", "kernels"):
        assert unsupported_reason(backend, Case(arch, CPU, torch.bfloat16)) is None
