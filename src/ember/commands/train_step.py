"""`ember train-step`: one real training step of packed weights, and its memory (L-6.4)."""

from pathlib import Path

from ember.commands.shared import DTYPES, count, positive
from ember.records.errors import EmberError, nearest


def add(commands) -> None:
    parser = commands.add_parser("train-step", help="one step of packed weights, and its memory")
    parser.add_argument("model", type=Path, metavar="MODEL", help="directory with config.json")
    parser.add_argument("--text", type=Path, help="a text to learn from (default: random tokens)")
    parser.add_argument("--tokens", type=positive, default=512, help="of the sequence")
    parser.add_argument("--arm", default="stochastic", help="how updates reach the weights")
    parser.add_argument("--states", default="int8", help="float32, int8 (default), int4 or none")
    parser.add_argument("--last-layers", type=positive, help="only these train (default: all)")
    parser.add_argument("--head", action="store_true", help="the head trains too")
    parser.add_argument("--no-checkpoint", action="store_true", help="keep all activations")
    parser.add_argument("--chunk-rows", type=positive, default=1024)
    parser.add_argument("--memory-json", type=Path, metavar="FILE", help="where the table goes")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (default)")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--seed", type=count, default=0)
    parser.set_defaults(run=_run)


def _run(options) -> str:
    from ember.lowbit.training import ARMS
    from ember.measure.device import resolve
    from ember.optim.loop import BadTraining
    from ember.records.atomic import write_json
    from ember.studies.lowbit.memory.measure import draw_tokens, step_memory

    variant = {name: getattr(options, name) for name in ("arm", "states", "last_layers", "head")}
    variant |= {"checkpoint": not options.no_checkpoint, "chunk_rows": options.chunk_rows}
    if options.arm not in ARMS:
        raise BadTraining(f"no arm {options.arm!r}.{nearest(options.arm, ARMS)}")
    tokens = _read(options) if options.text else None
    tokens = tokens or draw_tokens(options.model, options.tokens, options.seed)
    device = resolve(options.device)
    rows = step_memory(options.model, variant, tokens, device, options.dtype, options.seed)
    if options.memory_json:
        write_json(options.memory_json, {"variant": variant, "device": device, "phases": rows})
    lines = [
        f"{row['phase']:8}  peak {row['peak_bytes'] / 1e9:8.3f} GB, "
        f"{row['bytes_per_parameter']:6.2f} B a trained parameter"
        for row in rows
    ]
    return "\n".join([*lines, f"loss {rows[-1]['loss']:.4f} nats a token before the update"])


def _read(options) -> list[int]:
    from ember.text.tokenizer import load_tokenizer

    try:
        text = options.text.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EmberError(f"{options.text}: {error}\ngive a UTF-8 text file") from None
    tokens = load_tokenizer(options.model).encode_prompt(text)
    if len(tokens) <= options.tokens:
        raise EmberError(
            f"{options.text} has {len(tokens)} tokens, {options.tokens + 1} are needed\n"
            "give a longer text, or lower --tokens"
        )
    return tokens[: options.tokens + 1]
