"""The same conversation with its KV kept and replayed from nothing, in turns."""

import hashlib
import logging
from pathlib import Path

from ember.studies.lowbit.conversation.tables import TURN_RUNS
from ember.studies.lowbit.texts import passages
from ember.studies.measured import in_order, in_turns, on_device
from ember.studies.steps import makes

log = logging.getLogger(__name__)

TEMPLATE_TOKENS = 32  # around what is said in a turn, at most


@makes(TURN_RUNS)
def time_turns(
    *,
    model: str | Path,
    tokenizer: str | Path,
    corpus,
    turns: int,
    user_tokens: int,
    max_tokens: int,
    repeats: int,
    device: str,
    dtype: str,
    seed: int,
) -> list[dict]:
    """Rows of TURN_RUNS. One conversation of each kind comes before those that are recorded."""
    from ember.backends.sampling import SamplingParams
    from ember.lowbit.conversation import Conversation
    from ember.text.tokenizer import load_tokenizer

    words = load_tokenizer(tokenizer)
    said = passages(corpus, words, turns, user_tokens, seed)
    device, decoder, about = on_device(model, device, dtype, named=True)
    room = sum(len(words.encode(text)) + max_tokens + TEMPLATE_TOKENS for text in said)
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    rows = []
    for turn, kind in in_turns(["kept", "replay"], 1, repeats, seed, str, log):
        conversation = Conversation(decoder, words, capacity=room, kept=kind == "kept")
        for number, text in enumerate(said, 1):
            one = conversation.say(text, params)
            if turn < 0:
                continue
            rows.append(
                {
                    "kind": kind,
                    "turn": number,
                    "repeat": turn,
                    "user_tokens": one.user_tokens,
                    "cached_tokens": one.cached_tokens,
                    "answer_tokens": len(one.answer),
                    "length": one.length,
                    "answer_sha256": hashlib.sha256(repr(one.answer).encode()).hexdigest(),
                    "prefill_ms": one.prefill_ms,
                    "decode_ms": one.decode_ms,
                    "close_ms": one.close_ms,
                    **about,
                }
            )
    return in_order(rows, TURN_RUNS)
