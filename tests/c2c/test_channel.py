"""What is sent is what is simulated, in the sharer's shape; selection and schedules."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.c2c.channel import BadChannel, Channel, is_run, receive, scales_of
from ember.c2c.fuser import Fuser, FuserShape
from ember.c2c.select import SCOPES, SELECTORS, BadSelection, Selection, overlap, top
from ember.c2c.source import Context, SourceKV
from ember.formats.pairs import RAW, SPLIT, VALID
from ember.formats.registry import FormatError

HEADS, SIZE = 2, 8
PAIRS = [(scheme, axis) for scheme, axes in VALID.items() for axis in (*axes, SPLIT)]
MODES = [name for name in SELECTORS if not name.startswith("proj")]


def given_source(seed=0, batch=3, tokens=12, layers=(0, 2), ragged=True, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)

    def draw():
        return torch.randn(batch, tokens, HEADS, SIZE, generator=g, dtype=torch.float32).to(dtype)

    real = torch.ones(batch, tokens, dtype=torch.bool)
    if ragged:
        for row in range(1, batch):
            real[row, tokens - 2 * row :] = False
    kv = (tuple(draw() for _ in layers) for _ in range(2))
    return SourceKV(*kv, layers, real, False)


def given_context(source, own=True, fuser=None):
    instruction = source.tokens.clone()
    instruction[:, :3] = False
    batch, tokens = source.tokens.shape
    g = torch.Generator().manual_seed(9)
    kv = [tuple(torch.randn(2, batch, tokens, 1, 4, generator=g)) for _ in range(3)]
    return Context(instruction, torch.arange(batch), (lambda: kv) if own else None, fuser)


def opened(shape=None, gates=((True, True), (True, False), (False, False))):
    torch.manual_seed(3)
    fuser = Fuser(shape or FuserShape(HEADS, SIZE, 1, 4, 16), (0, 0, 2), rotated=False)
    for layer, pair in zip(fuser, gates, strict=True):
        layer.key.gate.data.fill_(1.0 if pair[0] else -1.0)
        layer.value.gate.data.fill_(1.0 if pair[1] else -1.0)
    return fuser


def equal(a: SourceKV, b: SourceKV) -> bool:
    parts = zip((*a.keys, *a.values), (*b.keys, *b.values), strict=True)
    return torch.equal(a.tokens, b.tokens) and all(torch.equal(x, y) for x, y in parts)


@pytest.mark.parametrize(("scheme", "axis"), PAIRS)
@settings(max_examples=8, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([1.0, 0.6, 0.25, 0.0]),
    st.sampled_from(MODES),
    st.sampled_from(SCOPES),
    st.booleans(),
)
def test_simulated_is_what_arrives(scheme, axis, seed, proportion, mode, scope, symmetric):
    symmetric = symmetric or not scheme.startswith("int")
    selection = Selection(mode, proportion, scope, seed=seed % 7)
    channel = Channel(scheme, axis, symmetric, group=4, selection=selection)
    source = given_source(seed)
    context = given_context(source)
    payloads = channel.send(source, context)
    sent = channel.transmit(source, context)
    assert equal(receive(payloads, 12), sent.source)
    assert sent.bytes == [payload.bytes for payload in payloads]
    assert not (sent.source.tokens & ~source.tokens).any()


def test_bytes_are_of_the_sharers_shape():
    """12,288 bytes a token of the published pair: 24 layers · 2 · 2 heads · 64 · 2 bytes."""
    kv = tuple(torch.zeros(1, 5, 2, 64) for _ in range(24))
    source = SourceKV(kv, kv, tuple(range(24)), torch.ones(1, 5, dtype=torch.bool), True)
    context = Context(source.tokens, torch.arange(1), None, None)
    assert Channel().transmit(source, context).bytes == [5 * 12_288]
    int8 = Channel("int8", "token")
    assert int8.transmit(source, context).bytes == [5 * (6_144 + 24 * 2 * 2)]
    assert Channel("int8", include_scale_overhead=False).transmit(source, context).bytes == [
        5 * 6_144
    ]


def test_layers_that_nobody_uses_are_not_sent():
    layers = opened().used_sources()
    assert layers == (0,)
    source = given_source(layers=layers)
    for payload in Channel("int4").send(source, given_context(source)):
        assert payload.layers == (0,)
        assert len(payload.keys) == len(payload.values) == 1


def test_all_of_the_tokens_is_the_channel_without_selection():
    source = given_source()
    context = given_context(source, fuser=opened())
    plain = Channel("int8", "head").transmit(source, context)
    for mode in SELECTORS:
        channel = Channel("int8", "head", selection=Selection(mode, 1.0))
        sent = channel.transmit(source, context)
        assert equal(sent.source, plain.source)
        assert sent.bytes == plain.bytes
        assert all(one.index is None and one.start == 0 for one in channel.send(source, context))


@pytest.mark.parametrize("mode", [*SELECTORS])
@pytest.mark.parametrize("proportion", [0.1, 0.25, 0.5, 0.99])
def test_the_proportion_alone_sets_the_number(mode, proportion):
    """min_tokens is 0 unless it is named, so that a small budget is a small budget."""
    source = given_source(tokens=20)
    context = given_context(source, fuser=opened())
    chosen = Channel(selection=Selection(mode, proportion)).choose(source, context)
    real = source.tokens.sum(1)
    assert chosen.sum(1).tolist() == [int(proportion * n + 1e-9) for n in real.tolist()]
    least = Channel(selection=Selection(mode, proportion, min_tokens=7)).choose(source, context)
    assert (least.sum(1) >= 7).all()


def test_nothing_sent_is_no_bytes():
    source = given_source(tokens=9, ragged=False)
    channel = Channel("int8", selection=Selection("back", 0.1))
    payload = channel.send(source, given_context(source))[0]
    assert payload.bytes == payload.tokens == 0
    assert not receive([payload], 9).tokens.any()


def test_places_of_the_instruction():
    source = given_source(batch=1, ragged=False)
    context = given_context(source)

    def places(mode, proportion, scope="instruction_only"):
        chosen = Channel(selection=Selection(mode, proportion, scope)).choose(source, context)
        return chosen[0].nonzero()[:, 0].tolist()

    assert places("front", 0.34) == [3, 4, 5]
    assert places("back", 0.34) == [9, 10, 11]
    assert places("middle", 0.34) == [6, 7, 8]
    assert places("front", 0.25, "prompt") == [0, 1, 2]
    assert places("front", 1.0) == list(range(3, 12))


def test_random_repeats_and_differs_by_seed():
    source = given_source(batch=2, tokens=60, ragged=False)
    context = given_context(source)

    def drawn(seed, source=source, context=context):
        return Channel(selection=Selection("random", 0.5, seed=seed)).choose(source, context)

    assert torch.equal(drawn(0), drawn(0))
    one = SourceKV(
        tuple(x[:1] for x in source.keys),
        tuple(x[:1] for x in source.values),
        source.layers,
        source.tokens[:1],
        False,
    )
    assert torch.equal(drawn(0)[:1], drawn(0, one, given_context(one)))  # whatever shares a batch
    shares = [(drawn(0)[0] & drawn(seed)[0]).sum().item() / 30 for seed in range(1, 21)]
    assert 0.4 < sum(shares) / 20 < 0.6
    halves = [drawn(seed)[0, :30].sum().item() / 30 for seed in range(20)]
    assert 0.4 < sum(halves) / 20 < 0.6


@given(st.integers(0, 2**32 - 1), st.integers(0, 6), st.sampled_from([0.1, 0.25, 0.5]))
@settings(max_examples=20, deadline=None)
def test_random_is_a_draw_for_each_text(first, seed, proportion):
    """Texts of one length share no more tokens than chance says, and places no more than others."""
    count, tokens = 400, 40
    source = SourceKV((), (), (), torch.ones(count, tokens, dtype=torch.bool), False)
    texts = torch.randperm(2**20, generator=torch.Generator().manual_seed(first))[:count] * 4093
    selection = Selection("random", proportion, seed=seed)

    def drawn(rows, padding=0):
        inside = torch.nn.functional.pad(source.tokens[rows], (0, padding))
        some = SourceKV((), (), (), inside, False)
        context = Context(inside, texts[rows], None, None)
        return selection.choose(some, context, selection.scores(some, context))

    chosen, picked = drawn(torch.arange(count)).float(), int(proportion * tokens)
    both = (chosen[:-1] * chosen[1:]).sum(1).mean() / picked
    assert abs(both - proportion) < 0.05
    assert (chosen.mean(0) - proportion).abs().max() < 0.13
    rows = torch.tensor([7, 3, 399])
    assert torch.equal(drawn(rows, padding=5)[:, :tokens].float(), chosen[rows])


def test_ties_go_to_the_earlier():
    scores = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]])
    inside = torch.tensor([[True, True, False, True, True]])
    assert top(scores, inside, torch.tensor([1]))[0].tolist() == [False, True, False, False, False]
    assert top(torch.zeros(1, 5), inside, torch.tensor([3]))[0].tolist() == [
        *(True, True, False, True, False),
    ]
    with pytest.raises(BadSelection, match="NaN"):
        top(scores / 0 * 0, inside, torch.tensor([1]))


def test_norms_rank_tokens():
    source = given_source(batch=1, ragged=False)
    source.values[1][0, 7] *= 50
    source.keys[0][0, 2] *= 50
    context = given_context(source)

    def first(mode):
        chosen = Channel(selection=Selection(mode, 0.1)).choose(source, context)
        return chosen[0].nonzero()[:, 0].tolist()

    assert first("vnorm_topk") == [7]
    assert first("knorm_topk") == [2]


def test_senders_scores_take_nothing_of_the_receiver():
    """A score that needs the receiver's KV is an oracle, and its traffic is charged."""
    source = given_source()
    alone = given_context(source, own=False, fuser=opened())
    both = given_context(source, fuser=opened())
    for name, one in SELECTORS.items():
        channel = Channel("int8", selection=Selection(name, 0.5))
        if one.oracle:
            with pytest.raises(BadSelection, match="the receiver is not loaded"):
                channel.choose(source, alone)
            plain = [payload.bytes for payload in channel.send(source, both)]
            charged = channel.transmit(source, both).bytes
            tokens = source.tokens.sum(1).tolist()
            assert charged == [
                n + 3 * 2 * 4 * 2 * real for n, real in zip(plain, tokens, strict=True)
            ]
        else:
            assert torch.equal(channel.choose(source, alone), channel.choose(source, both))


def test_overlap_of_sets():
    a = torch.tensor([[True, True, False, False], [True, False, False, False]])
    b = torch.tensor([[True, False, True, False], [True, False, False, False]])
    assert overlap([a, b]).tolist() == [[1.0, 0.75], [0.75, 1.0]]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: Selection("vnorm"), "Did you mean 'vnorm_topk'"),
        (lambda: Selection("back", 0.5, "instructions"), "token_select_scope"),
    ],
)
def test_selections_that_are_none(made, said):
    with pytest.raises(BadSelection, match=said):
        made()


def test_channels_that_are_none():
    with pytest.raises(FormatError, match="Set axis to token, channel"):
        Channel("int8", "head", layers={1: "nf4"})
    source = given_source()
    a, b = (Channel().send(one, given_context(one)) for one in (source, given_source(layers=(0,))))
    with pytest.raises(BadChannel, match="receive payloads of one sharer together"):
        receive([a[0], b[0]], 12)


def test_layers_in_schemes_of_their_own():
    source = given_source(ragged=False)
    channel = Channel("int2", "token", layers={2: RAW})
    sent = channel.transmit(source, given_context(source)).source
    assert (
        (sent.keys[1] - source.keys[1]).abs().max() < 0.01 < (sent.keys[0] - source.keys[0]).max()
    )
    assert [part.scheme for part in channel.send(source, given_context(source))[0].keys] == [
        *("int2", RAW),
    ]


def test_values_keep_their_type():
    source = given_source(dtype=torch.bfloat16)
    sent = Channel("int8", selection=Selection("back", 0.5)).transmit(source, given_context(source))
    assert {x.dtype for x in (*sent.source.keys, *sent.source.values)} == {torch.bfloat16}


@pytest.mark.parametrize("scheme", [*VALID])
def test_scales_that_are_told(scheme):
    source = given_source()
    part = Channel(scheme).send(source, given_context(source))[0].keys[0]
    scales = scales_of(part)
    if scheme == RAW:
        assert scales is None
    else:
        most = {"int2": 1, "int4": 7, "int8": 127, "fp8": 448, "nf4": 1}.get(scheme, 6)
        largest = source.keys[0][0].abs().max().item()
        assert scales.max().item() * most == pytest.approx(
            largest, rel=0.5 if scheme == "mxfp4" else 0.07
        )


def test_runs():
    for places in ([], [4], [3, 4, 5]):
        assert is_run(torch.tensor(places))
    assert not is_run(torch.tensor([1, 3]))
