"""`ember check`: logits of a prompt with and without an adapter, as a table (P1-3.2)."""

import argparse
from pathlib import Path

from ember.commands.shared import DTYPES, Job
from ember.records.errors import EmberError


def add(commands) -> None:
    parser = commands.add_parser("check", help="export logits with and without a LoRA adapter")
    parser.add_argument("--model", type=Path, required=True, help="model directory")
    parser.add_argument("--adapter", type=Path, required=True, help="folder in PEFT's format")
    parser.add_argument("--lora-scale", type=float, default=1.0, help="over the adapter's own")
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--tokens", type=_tokens, metavar="1,2,3", help="prompt as token ids")
    prompt.add_argument("--text", help="prompt as text, by the model's tokenizer")
    parser.add_argument(
        "--positions", choices=("last", "all"), default="last", help="which logits (default: last)"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (default)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--out", type=Path, default=Path("results/lora_logits.parquet"))
    parser.set_defaults(run=_run)


def _tokens(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of token ids such as 1,2,3")
    return [int(part) for part in parts]


def _run(options) -> str:
    """Writes a LORA_LOGITS table and says in words what the adapter moves.

    The adapter is merged, as the engine uses it. Raises EmberError.
    """
    import torch

    from ember.lora.merge import Merger
    from ember.lora.peft import load_adapter
    from ember.measure.device import resolve
    from ember.model.checkpoint import load_decoder
    from ember.studies.measured import measured_on
    from ember.studies.p1.lora_logits.tables import LORA_LOGITS

    model, adapter, tokens = options.model, options.adapter, options.tokens
    params = {"lora_scale": options.lora_scale, "positions": options.positions}
    job = Job("ember check", params, inputs=[model, adapter])
    found = load_adapter(adapter, scale=options.lora_scale)
    device = resolve(options.device)
    decoder = load_decoder(model, device, getattr(torch, options.dtype))
    if tokens is None:
        from ember.text.tokenizer import load_tokenizer

        tokens = load_tokenizer(model).encode(options.text, parse_special=False)
    params["tokens"] = tokens
    _check_prompt(tokens, decoder.arch.vocab_size)
    merger = Merger(decoder)
    prepared = merger.prepare(found)
    batch = torch.tensor([tokens], device=device)
    with torch.inference_mode():
        base = decoder.logits(decoder(batch))[0].float()
        merger.swap(prepared)
        adapted = decoder.logits(decoder(batch))[0].float()
    chosen = range(len(tokens)) if options.positions == "all" else [len(tokens) - 1]
    shared = {
        "adapter": str(adapter),
        "adapter_hash": found.hash,
        "lora_scale": options.lora_scale,
        **measured_on(model, device, options.dtype),
    }
    rows = [
        {"position": at, "token": token, "base_logit": before, "adapted_logit": after, **shared}
        for at in chosen
        for token, (before, after) in enumerate(
            zip(base[at].tolist(), adapted[at].tolist(), strict=True)
        )
    ]
    job.write(options.out, rows, LORA_LOGITS)
    moved = (adapted - base).abs()[list(chosen)].max()
    before, after = (int(x[-1].argmax()) for x in (base, adapted))
    return (
        f"{options.out}: {len(rows)} logits of {len(chosen)} position(s), adapter {adapter.name} "
        f"(rank {found.rank}, {len(found)} matrices, hash {found.hash[:16]})\n"
        f"largest change {float(moved):.4g}; most likely next token {before} before, {after} after"
    )


def _check_prompt(tokens: list[int], vocabulary: int) -> None:
    if not tokens:
        raise EmberError("the prompt is empty.\nGive a token or more.")
    if max(tokens) >= vocabulary:
        raise EmberError(
            f"the prompt has token {max(tokens)}, the vocabulary ends at {vocabulary - 1}.\n"
            "Use the model's own tokenizer."
        )
