"""`ember c2c ask`: one prompt through receiver, sharer, text-to-text and C2C."""

from pathlib import Path

from ember.commands.shared import DTYPES, positive


def add(commands) -> None:
    parser = commands.add_parser(
        "ask", help="one prompt through receiver, sharer, text-to-text and C2C: answers and bytes"
    )
    parser.add_argument("sharer", type=Path, help="model directory with tokenizer and template")
    parser.add_argument("receiver", type=Path, help="model directory with tokenizer and template")
    parser.add_argument("prompt", help="what to ask")
    parser.add_argument(
        "--fuser", help="folder of a published fuser, or its hub id (default: no C2C)"
    )
    parser.add_argument("--fuser-folder", help="folder of the fuser in its hub repository")
    parser.add_argument(
        "--alignment",
        choices=("off", "first", "longest", "span_end"),
        help="token alignment; a fuser refuses all but its own (default)",
    )
    parser.add_argument("--max-tokens", type=positive, default=64, help="of an answer (64)")
    parser.add_argument(
        "--message-tokens", type=positive, default=256, help="of the sharer's message (256)"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.set_defaults(run=_run)


def _run(options) -> str:
    import torch

    from ember.c2c.data import Question
    from ember.c2c.published import FOLDER, fetch_published
    from ember.c2c.real import Budget, answers, load_real
    from ember.measure.device import resolve

    fuser = options.fuser
    if fuser is not None:
        fuser = fetch_published(fuser, options.fuser_folder or FOLDER)
    pair, chats = load_real(
        options.sharer,
        options.receiver,
        fuser,
        alignment=options.alignment,
        device=resolve(options.device),
        dtype=getattr(torch, options.dtype),
    )
    question = Question("prompt", options.prompt.strip(), (), "")
    budget = Budget(options.max_tokens, options.message_tokens, 1)
    said = []
    for method in ("receiver", "sharer", "text", *(["c2c"] if fuser else [])):
        (row,) = answers(pair, chats, method, [question], budget=budget, forced=False)
        said.append(f"{method} ({row['bytes']:,} bytes): {row['text'].strip()}")
        if "message" in row:
            said.append(f"  message: {row['message']}")
    if not fuser:
        said.append("c2c: skipped, since no fuser was given (--fuser)")
    return "\n".join(said)
