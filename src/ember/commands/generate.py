"""Completions of prompts from a file, as a table (P1-4.2): what `ember generate` runs."""

import itertools
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from ember.commands.shared import DTYPES, Job, positive
from ember.records.errors import EmberError

log = logging.getLogger(__name__)


def add(commands) -> None:
    parser = commands.add_parser("generate", help="sample completions of prompts from a file")
    parser.add_argument("model", type=Path, help="model directory in Hugging Face format")
    parser.add_argument(
        "prompts",
        type=Path,
        help='one prompt a line; or .jsonl or .parquet with "prompt" (text) or "tokens" (ids)',
    )
    parser.add_argument("--out", type=Path, default=Path("completions.parquet"))
    parser.add_argument("--jsonl", type=Path, help="write JSON lines there as well")
    parser.add_argument("--n", type=positive, default=1, help="candidates of each prompt")
    parser.add_argument("--max-tokens", type=positive, default=128)
    parser.add_argument("--temperature", type=float, default=1.0, help="0: greedy (default: 1)")
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--min-p", type=float, default=0.0)
    parser.add_argument("--stop", nargs="+", default=[], metavar="TEXT")
    parser.add_argument("--stop-token-ids", nargs="+", type=int, default=[], metavar="ID")
    parser.add_argument(
        "--max-repeats", type=positive, help="fail at so many equal tokens in a row"
    )
    parser.add_argument("--ignore-eos", action="store_true", help="go on after the end of the text")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--max-rows", type=positive, help="candidates that decode together")
    parser.add_argument("--prefix-cache-mb", type=float, default=0.0, help="0: none (default)")
    parser.set_defaults(run=_run)


def _run(options) -> str:
    from ember.backends.sampling import SamplingParams
    from ember.studies.p1.completions.tables import COMPLETIONS

    fields = ("n", "max_tokens", "temperature", "top_k", "top_p", "min_p", "stop", "seed")
    given = {
        name: getattr(options, name)
        for name in (*fields, "stop_token_ids", "ignore_eos", "max_repeats")
    }
    names = ("device", "dtype", "max_rows", "prefix_cache_mb")
    runtime = {name: getattr(options, name) for name in names}
    inputs, seeds = [options.model, options.prompts], {"seed": options.seed}
    job = Job("ember generate", given | runtime, inputs=inputs, seeds=seeds)
    rows, stats = generate(
        model=options.model,
        prompts=read_prompts(options.prompts),
        sampling=SamplingParams(**given),
        **runtime,
    )
    job.write(options.out, rows, COMPLETIONS)
    if options.jsonl is not None:
        write_jsonl(options.jsonl, rows)
    return f"{options.out}: {len(rows)} completions\n{json.dumps(stats)}"


def read_prompts(path: str | Path) -> list[str | list[int]]:
    """Prompts as text or token ids: of a .jsonl or .parquet file its `prompt` (text) or `tokens`
    (ids), of any other file its lines."""
    path = Path(path)
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        try:
            rows = pq.read_table(path).to_pylist()
        except (OSError, ValueError) as error:
            raise EmberError(f"{path}: {error}\ngive a Parquet file of prompts") from None
        return [_prompt(path, f"row {n}", row) for n, row in enumerate(rows)]
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EmberError(f"{path}: {error}\ngive a UTF-8 text file of prompts") from None
    if path.suffix != ".jsonl":
        return lines
    found = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise EmberError(
                f"{path}, line {number}: {error}\ngive one JSON object a line"
            ) from None
        found.append(_prompt(path, f"line {number}", row))
    return found


def _prompt(path: Path, where: str, row) -> str | list[int]:
    for name, kind in (("prompt", str), ("tokens", list)):
        value = row.get(name) if isinstance(row, dict) else None
        if isinstance(value, kind):
            return value
    raise EmberError(f'{path}, {where}: give "prompt" (text) or "tokens" (a list of ids)')


def generate(
    *,
    model: str | Path,
    prompts: Sequence[str | list[int]],
    sampling,
    device: str,
    dtype: str,
    max_rows: int | None = None,
    prefix_cache_mb: float = 0.0,
) -> tuple[list[dict], dict]:
    """Rows of COMPLETIONS, and the rollout's statistics without its batches.

    `sampling`: SamplingParams. Text needs the model directory's tokenizer.
    """
    import torch

    from ember.cache.radix import RadixCache
    from ember.engine.engine import Engine
    from ember.engine.prefill import PrefixPrefill
    from ember.measure.device import resolve
    from ember.model.checkpoint import load_decoder
    from ember.studies.measured import measured_on

    device = resolve(device)
    tokenizer = _tokenizer(model, prompts, sampling)
    ids = [tokenizer.encode_prompt(p) if isinstance(p, str) else list(p) for p in prompts]
    decoder = load_decoder(model, device, getattr(torch, dtype))
    engine = Engine(
        decoder,
        capacity=max(map(len, ids), default=1) + sampling.max_tokens,
        prefill=PrefixPrefill(RadixCache(int(prefix_cache_mb * 1e6))) if prefix_cache_mb else None,
        detokenize=None if tokenizer is None else lambda t: tokenizer.decode(t, skip_special=True),
        max_rows=max_rows,
    )
    done = engine.generate(ids, sampling)
    about = measured_on(model, device, dtype)
    about.pop("evidence")
    stats = engine.last_stats.as_dict() if done else {}
    stats.pop("batches", None)
    return completion_rows(prompts, ids, done, sampling, about), stats


def completion_rows(prompts, ids, done, sampling, about: dict) -> list[dict]:
    """Rows of COMPLETIONS for completions of prompts (text or ids, and ids)."""
    settings = ("temperature", "top_k", "top_p", "min_p", "max_tokens")
    return [
        {
            "prompt": number,
            "candidate": candidate,
            "prompt_text": prompt if isinstance(prompt, str) else None,
            "prompt_tokens": [int(token) for token in tokens],
            "cached_tokens": one.cached_tokens,
            "text": one.text,
            "tokens": list(one.tokens),
            "logprobs": list(one.logprobs),
            "raw_logprobs": list(one.raw_logprobs),
            "finish_reason": one.finish_reason,
            "stop_reason": None if one.stop_reason is None else str(one.stop_reason),
            "seed": one.seed,
            "weights_versions": " ".join(
                f"{version}x{len(list(run))}" for version, run in itertools.groupby(one.versions)
            ),
            **{name: getattr(sampling, name) for name in settings},
            **about,
        }
        for number, (prompt, tokens, row) in enumerate(zip(prompts, ids, done, strict=True))
        for candidate, one in enumerate(row)
    ]


def _tokenizer(model, prompts, sampling):
    """The model's tokenizer; None where it has none and nobody needs it."""
    from ember.text.tokenizer import BadTokenizer, load_tokenizer

    try:
        return load_tokenizer(Path(model))
    except BadTokenizer:
        if sampling.stop or any(isinstance(prompt, str) for prompt in prompts):
            raise
        log.info("%s has no tokenizer: completions have no text", model)
        return None


def write_jsonl(path: str | Path, rows: Sequence[dict]) -> Path:
    """One JSON object a row, written whole or not at all."""
    from ember.records.atomic import write_text

    path = Path(path)
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path
