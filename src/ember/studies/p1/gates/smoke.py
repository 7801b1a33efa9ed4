"""Gate: the engine runs on one device, and as two stages in two processes (P1-0.1)."""

import logging
from pathlib import Path

from ember.studies.p1.gates.row import GateFailed, passed
from ember.studies.p1.gates.tables import GATES
from ember.studies.steps import makes

log = logging.getLogger(__name__)


@makes(GATES)
def check_smoke(
    model: Path,
    *,
    device: str,
    dtype: str,
    seed: int,
    tokens: int,
    new_tokens: int,
    tolerance: float,
) -> list[dict]:
    """The gate's row.

    One device: the engine's greedy tokens equal those of the plain decoder in the same number
    format, up to ties (logits closer than `tolerance`). Two stages: the last token's logits equal
    those of one stage within `tolerance`, in float32. Raises `GateFailed` otherwise.
    """
    import torch

    from ember.backends.sampling import SamplingParams
    from ember.engine.engine import Engine
    from ember.model.checkpoint import load_decoder
    from ember.pipeline.logits import two_stage_logits

    decoder = load_decoder(Path(model), device=device, dtype=getattr(torch, dtype))
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.randint(decoder.arch.vocab_size, (tokens,), generator=generator).tolist()
    engine = Engine(decoder, capacity=tokens + new_tokens)
    [[completion]] = engine.generate(
        [prompt], SamplingParams(max_tokens=new_tokens, ignore_eos=True)
    )
    log.info("one device: %d tokens generated", len(completion.tokens))
    gap = _greedy_gap(decoder, prompt, list(completion.tokens))
    slack = tolerance if dtype == "float32" else 0.25
    if not gap <= slack:
        raise GateFailed(
            f"the engine chose a token whose logit is {gap:.3g} below the decoder's best "
            f"(allowed {slack:g}). Run the engine's tests: its fast form has left the decoder."
        )
    del engine, decoder
    if device == "cuda":
        torch.cuda.empty_cache()
    one, two = two_stage_logits(Path(model), prompt, device=device)
    difference = float((one - two).abs().max())
    if not difference <= tolerance:
        raise GateFailed(
            f"two stages differ from one by {difference:.3g} in a logit (allowed {tolerance:g}). "
            "Check layer ranges and the transfer of hidden states."
        )
    where = "two devices" if device == "cuda" and torch.cuda.device_count() > 1 else "one device"
    return [
        passed(
            "smoke",
            f"one process: {new_tokens} tokens after {tokens}, largest logit gap {gap:.2g}; two "
            f"processes on {where}: largest logit difference {difference:.2g} (float32)",
        )
    ]


def _greedy_gap(decoder, prompt: list[int], chosen: list[int]) -> float:
    """How far below the best logit the chosen tokens lie in a teacher-forced pass; 0 if greedy."""
    import torch

    with torch.inference_mode():
        device = next(decoder.parameters()).device
        tokens = torch.tensor([prompt + chosen[:-1]], device=device)
        logits = decoder.logits(decoder(tokens)[:, len(prompt) - 1 :]).float()[0]
        best = logits.max(dim=-1).values
        picked = logits.gather(1, torch.tensor(chosen, device=device)[:, None])[:, 0]
        gap = (best - picked).max()
    return float(gap) if torch.isfinite(gap) else float("inf")
