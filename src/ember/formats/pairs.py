"""Along which axis of a KV tensor (T, H, D) values share a scale, and which formats can do it.

`layer`: one scale for all; `head`: one for each head; `token`: one for each token; `channel`: one
for each channel of each head, over tokens; `group`: one for `group` neighbouring values of a token.
Block formats (nf4, nvfp4, mxfp4) have blocks of a fixed size: for them `token` and `channel` say in
which order values are neighbours, and no head or layer can have a scale. `fp16` has no scales: with
it the axis says nothing. No torch: the configuration is checked against this table.
"""

from ember.records.errors import nearest

AXES = ("layer", "head", "token", "channel", "group")
BLOCKS = ("token", "channel")
SPLIT = "k_channel_v_token"
"""Keys by channel, values by token (KIVI, arXiv 2402.02750). For schemes that have both."""
RAW = "fp16"
VALID: dict[str, tuple[str, ...]] = {
    RAW: AXES,
    "int8": AXES,
    "int4": AXES,
    "int2": AXES,
    "fp8": AXES,
    "nf4": BLOCKS,
    "nvfp4": BLOCKS,
    "mxfp4": BLOCKS,
}
"""Axes by scheme."""
ASYMMETRIC = ("int8", "int4", "int2")


def axes_of(axis: str) -> tuple[str, str]:
    """Axes of keys and of values."""
    return ("channel", "token") if axis == SPLIT else (axis, axis)


def problem(scheme: str, axis: str, *, symmetric: bool = True) -> str | None:
    """What is wrong with a scheme on an axis, and what to set instead; None for a valid pair."""
    for name, known, what in ((scheme, VALID, "scheme"), (axis, (*AXES, SPLIT), "axis")):
        if name not in known:
            return f"unknown {what} {name!r}.{nearest(name, known)} Known: {', '.join(known)}"
    if not {*axes_of(axis)} <= {*VALID[scheme]}:
        return (
            f"{scheme} has no scale for each {axis}: its blocks have a fixed size. "
            f"Set axis to {', '.join(VALID[scheme])} or {SPLIT}, or take an integer scheme or fp8"
        )
    if not symmetric and scheme not in (RAW, *ASYMMETRIC):
        return f"{scheme} is symmetric only. Set symmetric to true, or take {', '.join(ASYMMETRIC)}"
    return None
