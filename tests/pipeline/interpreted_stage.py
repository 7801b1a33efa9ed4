"""Two stages in kernels against the decoder, on the CPU under Triton's interpreter."""

import pytest
import torch

from ember.backends.cuda import attention, step
from ember.backends.cuda.products import Plan
from tests.pipeline.test_stage import generate, make


@pytest.mark.parametrize(
    ("family", "rows"), [("qwen3", 1), ("qwen3", 3), ("gemma3_text", 3), ("gpt_neox", 1)]
)
@torch.inference_mode()
def test_two_stages_are_the_decoder(family, rows, monkeypatch):
    # The interpreter's time goes with the number of programs, whatever their size.
    monkeypatch.setattr(step, "matvec_plan", lambda k, **_: Plan(64, 32, 2, 1))
    monkeypatch.setattr(step, "skinny_plan", lambda k, *, gated: Plan(64, 32, 2, 2))
    monkeypatch.setattr(attention, "SHARED_PARTS", 1)
    monkeypatch.setattr(attention, "OWN_PARTS", 1)
    decoder = make(family)
    tokens = torch.randint(67, (rows, 5), generator=torch.Generator().manual_seed(2))
    found, sampled, forms = generate(decoder, tokens, 2, steps=2)
    assert forms == ("kernels", "kernels")
    expected = decoder.logits(decoder(torch.cat([tokens, sampled[:, :-1]], 1)))[:, 4:]
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)
    assert torch.equal(sampled, expected.argmax(-1))
