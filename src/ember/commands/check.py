"""`ember check`: logits of a prompt with and without an adapter, as a table (P1-3.2)."""

import time
from datetime import UTC, datetime
from pathlib import Path

from ember.measure.device import resolve
from ember.records.errors import EmberError
from ember.studies.measured import measured_on
from ember.studies.p1.lora_logits.tables import LORA_LOGITS


class BadCheck(EmberError):
    """A prompt that the model cannot run."""


def check_adapter(
    *,
    model: Path,
    adapter: Path,
    lora_scale: float,
    tokens: list[int] | None,
    text: str | None,
    positions: str,
    device: str,
    dtype: str,
    out: Path,
) -> str:
    """Writes a LORA_LOGITS table to `out` and returns a summary in words.

    The adapter is merged, as the engine uses it. `positions`: "last" or "all" tokens of the prompt,
    given as `tokens` or as `text`. Raises BadAdapter, BadCheckpoint or BadCheck.
    """
    import torch

    from ember.lora.merge import Merger
    from ember.lora.peft import load_adapter
    from ember.measure.system import hardware
    from ember.model.checkpoint import load_decoder
    from ember.records.provenance import collect
    from ember.records.tables import write_table

    began, started = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    found = load_adapter(adapter, scale=lora_scale)
    device = resolve(device)
    decoder = load_decoder(model, device, getattr(torch, dtype))
    if tokens is None:
        from ember.text.tokenizer import load_tokenizer

        tokens = load_tokenizer(Path(model)).encode(text, parse_special=False)
    _check_prompt(tokens, decoder.arch.vocab_size)
    merger = Merger(decoder)
    prepared = merger.prepare(found)
    batch = torch.tensor([tokens], device=device)
    with torch.inference_mode():
        base = decoder.logits(decoder(batch))[0].float()
        merger.swap(prepared)
        adapted = decoder.logits(decoder(batch))[0].float()
    chosen = range(len(tokens)) if positions == "all" else [len(tokens) - 1]
    shared = {
        "adapter": str(adapter),
        "adapter_hash": found.hash,
        "lora_scale": lora_scale,
        **measured_on(model, device, dtype),
    }
    rows = [
        {"position": at, "token": token, "base_logit": before, "adapted_logit": after, **shared}
        for at in chosen
        for token, (before, after) in enumerate(
            zip(base[at].tolist(), adapted[at].tolist(), strict=True)
        )
    ]
    provenance = collect(
        rule="ember check",
        inputs=[str(path) for path in (model, adapter)],
        outputs=[out],
        params={"lora_scale": lora_scale, "tokens": tokens, "positions": positions},
        config={},
        seeds={},
        code=None,
        threads=torch.get_num_threads(),
        started=started,
        seconds=time.perf_counter() - began,
        hardware=hardware(),
    )
    write_table(out, rows, LORA_LOGITS, provenance)
    moved = (adapted - base).abs()[list(chosen)].max()
    before, after = (int(x[-1].argmax()) for x in (base, adapted))
    return (
        f"{out}: {len(rows)} logits of {len(chosen)} position(s), adapter {adapter.name} "
        f"(rank {found.rank}, {len(found)} matrices, hash {found.hash[:16]})\n"
        f"largest change {float(moved):.4g}; most likely next token {before} before, {after} after"
    )


def _check_prompt(tokens: list[int], vocabulary: int) -> None:
    if not tokens:
        raise BadCheck("the prompt is empty.\nGive a token or more.")
    if max(tokens) >= vocabulary:
        raise BadCheck(
            f"the prompt has token {max(tokens)}, the vocabulary ends at {vocabulary - 1}.\n"
            "Use the model's own tokenizer."
        )
