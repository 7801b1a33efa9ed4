"""Token alignment between two small tokenizers: byte-level BPE, and BPE with a byte fallback."""

import functools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ember.c2c import align as alignment
from ember.c2c.align import NOWHERE, BadAlignment, align, check_mode, span_ends
from tests.c2c import real

TEXTS = (
    st.text(
        st.sampled_from("abcdehimnorstu  .?\nABCDé北京🚀ß\u0301\u200d"), min_size=1, max_size=40
    )
    .map(str.strip)
    .filter(bool)
)


@functools.cache
def chats():
    return real.chat("qwen"), real.chat("llama")


def both(mode, text, *, swap=False, **options):
    ours, theirs = chats()[::-1] if swap else chats()
    return align(mode, ours, theirs, text, **options), ours, theirs


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("mode", ["first", "longest", "span_end"])
@settings(max_examples=60, deadline=None)
@given(text=TEXTS, fuse_template=st.booleans())
@example(text="naïve 北京 🚀🚀 café", fuse_template=True)
@example(text="a", fuse_template=False)
def test_an_alignment_is_consistent(mode, swap, text, fuse_template):
    found, ours, _ = both(mode, text, swap=swap, fuse_template=fuse_template)
    count = len(found.receiver)
    assert list(found.receiver) == ours.tokens([{"role": "user", "content": text}])
    assert len(found.index) == len(found.fused) == len(found.message) == count
    assert all(place == NOWHERE or 0 <= place < len(found.sharer) for place in found.index)
    assert not any(
        f and place == NOWHERE for f, place in zip(found.fused, found.index, strict=True)
    )
    assert not found.fused[-1]
    assert any(found.message)
    if not fuse_template:
        assert not any(f and not m for f, m in zip(found.fused, found.message, strict=True))
    inside = [p for p, m in zip(found.index, found.message, strict=True) if m and p != NOWHERE]
    assert inside == sorted(inside)


@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_span_end_reads_natively_and_ends_where_a_token_ends(text):
    found, ours, theirs = both("span_end", text)
    message = [{"role": "user", "content": text}]
    assert list(found.sharer) == theirs.tokens(message)
    placed, other = ours.place(text), theirs.place(text)
    spans, their_spans = ours.encode(placed.text)[1], theirs.encode(other.text)[1]
    for place, target in enumerate(found.index):
        if not found.message[place] or target == NOWHERE:
            continue
        stop = min(spans[place][1], placed.stop) - placed.start
        begins, ends = (x - other.start for x in their_spans[target])
        # The sharer has read up to this token's last character, and no token further.
        assert begins < max(stop, 1)
        assert ends >= stop
        if target + 1 < len(their_spans) and not their_spans[target + 1][0] >= other.stop:
            assert their_spans[target + 1][0] - other.start >= stop


@pytest.mark.parametrize("mode", ["first", "longest"])
def test_one_sharer_token_stands_for_each_receiver_token(mode):
    text = "Which metal rusts?"
    found, ours, theirs = both(mode, text)
    words = [w for w, m in zip(found.receiver, found.message, strict=True) if m]
    for word, place in zip(
        words, (p for p, m in zip(found.index, found.message, strict=True) if m), strict=True
    ):
        pieces = theirs.tokenizer(ours.tokenizer.decode([word]), add_special_tokens=False)[
            "input_ids"
        ]
        sizes = [len(theirs.tokenizer.decode([piece])) for piece in pieces]
        wanted = pieces[0] if mode == "first" else pieces[sizes.index(max(sizes))]
        assert found.sharer[place] == wanted


def test_first_and_longest_differ_where_a_token_is_cut_into_a_short_and_a_long_piece():
    chosen = {
        mode: alignment.choose_tokens(mode, chats()[1], ["(correct"])
        for mode in ("first", "longest")
    }
    assert chosen["first"] != chosen["longest"]
    assert alignment.choose_tokens("first", chats()[1], [""]) == [None]


def test_parts_of_a_character_stand_for_the_whole_character():
    ours, _ = chats()
    placed = ours.place("🚀")
    ids, spans = ours.encode(placed.text)
    roles = alignment.roles_of(spans, placed)
    inside = [place for place, role in enumerate(roles) if role == "message"]
    assert len(inside) > 1  # pieces of its bytes
    texts = alignment.token_texts(
        ours, [ids[p] for p in inside], [spans[p] for p in inside], placed
    )
    assert texts == ["🚀"] * len(inside)
    found, _, _ = both("span_end", "🚀")
    last = {p for p, m in zip(found.index, found.message, strict=True) if m}
    assert len(last) == 1  # each byte of it has read all of it


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=12),
    st.lists(st.integers(0, 3), min_size=1, max_size=12),
)
def test_span_ends_against_their_definition(ours, theirs):
    """The last token that overlaps; for an empty span the last that begins at or before it."""

    def spans(sizes):
        ends = [sum(sizes[: n + 1]) for n in range(len(sizes))]
        return [(end - size, end) for end, size in zip(ends, sizes, strict=True)]

    mine, other = spans(ours), spans(theirs)
    for (start, stop), found in zip(mine, span_ends(mine, other), strict=True):
        begun = [n for n, (begins, _) in enumerate(other) if begins < max(stop, start + 1)]
        assert found == (begun[-1] if begun else NOWHERE)


def test_template_tokens_are_mapped_by_role_from_their_end():
    index = alignment.by_role(
        ["before", "before", "message", "close", "answer", "answer", "answer"],
        ["before", "message", "message", "answer", "answer"],
    )
    assert index == [0, 0, NOWHERE, NOWHERE, 3, 3, 4]
    found, _, _ = both("span_end", "Which metal?", fuse_template=True)
    answer = found.index[-1]
    assert answer == len(found.sharer) - 1  # where the answer begins, in both
    assert found.fused[0]
    plain, _, _ = both("span_end", "Which metal?")
    assert plain.index == found.index  # the switch is apart from the mapping
    assert not plain.fused[0]


def test_off_gives_the_sharer_the_receivers_tokens():
    ours, theirs = chats()
    found = align("off", ours, real.chat("qwen"), "Which metal?", fuse_template=True)
    assert found.sharer == found.receiver
    assert found.index == tuple(range(len(found.receiver)))
    assert all(found.fused[:-1])
    with pytest.raises(BadAlignment, match="other vocabularies"):
        align("off", ours, theirs, "Which metal?")


def test_off_takes_tokens_that_only_the_receiver_knows():
    ours = real.chat("qwen")
    ours.tokenizer.add_tokens(["<think>", "</think>"])
    found = align("off", ours, real.chat("qwen"), "Which metal?")
    assert max(found.sharer) >= len(chats()[0].tokenizer)


def test_a_fuser_is_used_with_the_mode_that_it_was_trained_with():
    check_mode("first", "first")
    with pytest.raises(BadAlignment, match="trained with alignment 'first'"):
        check_mode("first", "longest")
    with pytest.raises(BadAlignment, match="no alignment 'prefix'"):
        both("prefix", "a")
