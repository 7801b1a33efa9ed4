"""Stop strings and streamed text, wherever tokens end."""

from hypothesis import given
from hypothesis import strategies as st

from ember.engine.stops import TextStream, final_text

PIECES = ["a", "b", "ab", "ba", "é".encode()[:1], "é".encode()[1:], "\n"]
BYTES = [piece if isinstance(piece, bytes) else piece.encode() for piece in PIECES]


def decode(tokens) -> str:
    return b"".join(BYTES[token] for token in tokens).decode(errors="replace")


tokens = st.lists(st.integers(0, len(BYTES) - 1), max_size=20)
stops = st.lists(st.sampled_from(["aba", "bb", "é", "a\nb", "b"]), max_size=3)


@given(tokens, stops)
def test_a_stop_is_seen_at_the_token_that_completes_it(ids, texts):
    stream = TextStream(decode, texts)
    for end, token in enumerate(ids, 1):
        found = stream.add(token)
        # A character in two tokens counts when it is whole.
        text = decode(ids[:end])
        if text.endswith("\ufffd"):
            return
        assert (found is not None) == any(stop in text for stop in texts)
        if found is not None:
            first = min(text.find(stop) for stop in texts if stop in text)
            assert text.find(found) == first
            return


@given(tokens, stops)
def test_streamed_parts_make_the_final_text_and_never_hold_a_stop(ids, texts):
    stream, given_out = TextStream(decode, texts), ""
    for end, token in enumerate(ids, 1):
        found = stream.add(token)
        given_out += stream.take(last=found is not None or end == len(ids))
        if found is not None:
            ids = ids[:end]
            break
    assert given_out == final_text(decode, ids, texts)
    assert not any(stop in given_out for stop in texts)


def test_a_stop_may_begin_in_one_token_and_end_in_another():
    stream = TextStream(decode, ["aba"])
    assert [stream.add(token) for token in (1, 2, 1)] == [None, None, None]  # b ab b
    stream = TextStream(decode, ["aba"])
    assert [stream.add(token) for token in (0, 3)] == [None, "aba"]  # a ba
    assert stream.take(last=True) == ""
