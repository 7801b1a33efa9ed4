"""Scales along the axes of a KV tensor."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.formats.axes import Along, check
from ember.formats.pairs import ASYMMETRIC, AXES, RAW, SPLIT, VALID, axes_of
from ember.formats.registry import FORMATS, FormatError

GRID = [
    (scheme, axis, symmetric)
    for scheme, axes in VALID.items()
    for axis in axes
    for symmetric in ((True, False) if scheme.startswith("int") else (True,))
]


def kv(seed: int, *shape: int, spread: float = 1.0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g) * 10 ** (spread * torch.rand(shape[-1], generator=g))


@pytest.mark.parametrize(("scheme", "axis", "symmetric"), GRID)
@settings(max_examples=10, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 3),
    st.integers(0, 40),
    st.integers(1, 3),
    st.sampled_from([4, 8, 20]),
    st.floats(0, 6),
)
def test_simulated_equals_packed(scheme, axis, symmetric, seed, batch, count, heads, size, spread):
    """Bit for bit, whatever shares a batch; and sizes are what the layout says beforehand."""
    along, x = Along(scheme, axis, symmetric, 4), kv(seed, batch, count, heads, size, spread=spread)
    found = along.simulate(x)
    assert found.shape == x.shape
    for one, simulated in zip(x, found, strict=True):
        packed = along.pack(one)
        assert torch.equal(along.unpack(packed.data, packed.parts, tuple(one.shape)), simulated)
        codes, parts = along.layout(tuple(one.shape))
        assert codes == packed.data.nbytes
        assert parts == {n: (p.dtype, tuple(p.shape)) for n, p in packed.parts.items()}
        assert along.bytes(tuple(one.shape)) == packed.bytes


@pytest.mark.parametrize("axis", AXES)
def test_values_of_one_scale_do_not_touch_another(axis):
    """A huge value coarsens those that share its scale, and no other."""
    x = kv(0, 6, 2, 8)
    huge = x.clone()
    huge[2, 1, 3] = 1e4
    along = Along("int8", axis, group=4)
    same = along.simulate(x[None])[0] == along.simulate(huge[None])[0]
    shared = torch.zeros_like(same)
    places = {
        "layer": (slice(None),) * 3,
        "head": (slice(None), 1, slice(None)),
        "token": (2, slice(None), slice(None)),
        "channel": (slice(None), 1, 3),
        "group": (2, 1, slice(0, 4)),
    }
    shared[places[axis]] = True
    assert same[~shared].all()
    assert not same[shared].all()


def test_finer_scales_are_nearer():
    x = kv(1, 40, 2, 16, spread=2.0)

    def error(axis):
        return (Along("int4", axis, group=4).simulate(x[None])[0] - x).norm()

    assert error("layer") > error("head") > error("channel")
    assert error("layer") > error("token") > error("group")


def test_split_is_the_pair_of_axes():
    assert axes_of(SPLIT) == ("channel", "token")
    assert axes_of("head") == ("head", "head")


def test_table_knows_every_format():
    assert {*VALID} == {*FORMATS, RAW}
    for name, format in FORMATS.items():
        assert VALID[name] == (("token", "channel") if format.block else AXES)
        assert (name in ASYMMETRIC) == ("symmetric" in format.options)
    for scheme, axes in VALID.items():
        for axis in (*axes, SPLIT):
            check(scheme, axis)


@pytest.mark.parametrize(
    ("scheme", "axis", "symmetric", "said"),
    [
        ("nf4", "head", True, "Set axis to token, channel or k_channel_v_token"),
        ("mxfp4", "layer", True, "blocks have a fixed size"),
        ("int5", "head", True, "Did you mean"),
        ("int8", "heads", True, "Did you mean 'head'"),
        ("fp8", "head", False, "symmetric only"),
    ],
)
def test_pairs_that_are_none(scheme, axis, symmetric, said):
    with pytest.raises(FormatError, match=said):
        check(scheme, axis, symmetric=symmetric)


def test_groups_that_do_not_fit():
    with pytest.raises(FormatError, match="set group to a divisor of 24"):
        Along("int8", "group", group=16).layout((4, 1, 24))


def test_small_magnitudes_are_zero():
    x = torch.tensor([1e-3, -1e-3, 1.0, 0.5]).view(1, 2, 1, 2)
    assert Along("int8", "token").simulate(x)[0, 0].abs().min() > 0
    assert Along("int8", "token", eps=1e-2).simulate(x)[0, 0].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_raw_halves_take_what_is_too_large_for_their_greatest_and_leave_infinity(dtype):
    x = torch.tensor([1.5, 1e38, -1e38, torch.inf, -torch.inf, torch.nan], dtype=dtype)[
        :, None, None
    ]
    found = Along().simulate(x[None])[0].flatten()
    assert found[:5].tolist() == [1.5, 65504, -65504, torch.inf, -torch.inf]
    assert found[5].isnan()
    sent = Along().pack(x).data.view(torch.float16)
    assert torch.equal(sent[:5].float(), found[:5])
