"""`ember converse`: several turns with one model, whose KV stays from turn to turn (L-5)."""

from pathlib import Path

from ember.commands.shared import DTYPES, count, positive


def add(commands) -> None:
    parser = commands.add_parser("converse", help="several turns whose KV cache stays")
    parser.add_argument("model", type=Path, metavar="MODEL", help="directory with config.json")
    parser.add_argument("--prompt", required=True, help="what the user says first")
    parser.add_argument("--followup-prompt", default="Go on.", help="and then (default: Go on.)")
    parser.add_argument("--turns", type=positive, default=3)
    parser.add_argument("--max-tokens", type=positive, default=64, help="of an answer")
    parser.add_argument("--template", default="plain", help="plain (default) or chatml")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy (default)")
    parser.add_argument(
        "--max-repeats", type=positive, help="fail at so many equal tokens in a row"
    )
    parser.add_argument("--seed", type=count, default=0)
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--replay", action="store_true", help="keep nothing between the turns")
    parser.add_argument("--log-tokens", action="store_true", help="show the answers' token ids")
    parser.set_defaults(run=_run)


def _run(options) -> str:
    import torch

    from ember.backends.sampling import SamplingParams
    from ember.lowbit.conversation import Conversation
    from ember.measure.device import resolve
    from ember.model.checkpoint import load_decoder
    from ember.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(options.model)
    decoder = load_decoder(options.model, resolve(options.device), getattr(torch, options.dtype))
    said = [options.prompt, *[options.followup_prompt] * (options.turns - 1)]
    # The template adds a handful of tokens to each turn.
    room = sum(len(tokenizer.encode(text)) + 32 + options.max_tokens for text in said)
    conversation = Conversation(
        decoder,
        tokenizer,
        options.template,
        capacity=min(room, decoder.arch.max_positions),
        kept=not options.replay,
    )
    params = SamplingParams(
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        seed=options.seed,
        max_repeats=options.max_repeats,
    )
    for number, text in enumerate(said, 1):
        turn = conversation.say(text, params)
        print(f"user: {text}\nassistant: {turn.text.strip()}")
        print(
            f"  turn {number}: {turn.user_tokens} tokens said, {turn.cached_tokens} reused, "
            f"{turn.length} now; prefill {turn.prefill_ms:.1f} ms, decode {turn.decode_ms:.1f} ms, "
            f"kept in {turn.close_ms:.1f} ms"
        )
        if options.log_tokens:
            print(f"  tokens: {list(turn.answer)}")
    return f"{options.turns} turns, {len(conversation.tokens)} tokens"
