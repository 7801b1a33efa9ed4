"""Rotary scaling, and how Hugging Face configs say it.

Transformers 5 writes `rope_parameters`, Transformers 4 `rope_theta` and `rope_scaling`; where both
stand in one config, reading it here gives what Transformers 5 makes of it.
"""

from dataclasses import dataclass

from ember.records.errors import EmberError
from ember.records.foreign import Fields, shown

THETA = {"low": 1.0, "high": 1e12}  # bounds of a base
FACTOR = {"low": 1e-3, "high": 1e6}  # and of a scaling's numbers


class BadArchitecture(EmberError):
    """Sizes that contradict each other, or fields nobody knows."""


class UnsupportedModel(EmberError):
    """A model that this decoder cannot run; the message names those it can."""


@dataclass(frozen=True)
class RopeScaling:
    """Stretched rotary wavelengths, for longer contexts than the model was first trained on.

    With `factor` alone all of them (linear); with the other three, as Llama 3 does: only those
    beyond the original context.
    """

    factor: float
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_positions: int | None = None

    def __post_init__(self):
        llama3 = (self.low_freq_factor, self.high_freq_factor, self.original_max_positions)
        if llama3.count(None) not in (0, 3):
            raise BadArchitecture(
                f"rotary scaling has {self}.\n"
                "Give factor alone (linear), or all four numbers (llama3)."
            )
        if None not in llama3 and not self.low_freq_factor < self.high_freq_factor:
            raise BadArchitecture(
                f"rotary scaling has {self}.\nMake high_freq_factor greater than low_freq_factor."
            )

    @property
    def is_llama3(self) -> bool:
        """Whether only long wavelengths are stretched; all of them otherwise."""
        return self.original_max_positions is not None


@dataclass(frozen=True)
class Rope:
    """Base, share of a head's dimensions that is rotated, and scaling."""

    theta: float
    fraction: float = 1.0
    scaling: RopeScaling | None = None


def chosen(config: Fields) -> Fields:
    """The object that says how all layers rotate; an empty one where the config has none.

    `rope_scaling`, if it is not empty, takes the place of `rope_parameters` as a whole.
    """
    rope = config.object("rope_scaling") or config.object("rope_parameters")
    for kind in ("full_attention", "sliding_attention"):
        if kind in rope:
            raise _unsupported(f"rotation by kind of layer ({rope.where}) is not supported here.")
    if context := config.get("original_max_position_embeddings", int, None, low=1):
        rope = rope.with_values({"original_max_position_embeddings": context})
    return rope


def read_rope(config: Fields, rope: Fields, theta: float, fraction: float | None = None) -> Rope:
    """What such an object says; `theta` and `fraction` hold where it does not give them.

    Without a `fraction` the model rotates whole heads, whatever the object says.
    """
    theta = rope.get("rope_theta", float, theta, **THETA)
    kind, old = (rope.get(key, str, None) for key in ("rope_type", "type"))
    if kind is not None and old is not None and kind != old:
        raise rope.bad(f"has rope_type {shown(kind)} and type {shown(old)}")
    kind = kind or old or "default"
    if kind not in ("default", "linear", "llama3"):
        raise _unsupported(f"rotary scaling {shown(kind)} is not supported.")
    share = rope.get("partial_rotary_factor", float, fraction or 1.0, low=0, high=1)
    if fraction is None and share != 1.0 and kind != "default":
        raise _unsupported(
            f"scaled rotation of a part of each head ({rope.where}) is not supported."
        )
    scaling = None if kind == "default" else _read_scaling(config, rope, kind)
    return Rope(theta, 1.0 if fraction is None else share, scaling)


def _read_scaling(config: Fields, rope: Fields, kind: str) -> RopeScaling:
    factor = rope.get("factor", float, **FACTOR)
    if kind == "linear":
        return RopeScaling(factor)
    context = rope.get("original_max_position_embeddings", int, None, low=1)
    return RopeScaling(
        factor=factor,
        low_freq_factor=rope.get("low_freq_factor", float, **FACTOR),
        high_freq_factor=rope.get("high_freq_factor", float, **FACTOR),
        original_max_positions=context or config.get("max_position_embeddings", int, low=1),
    )


def write_rope(rope: Rope, **more: float) -> dict:
    """The object that says this rotation, with `more` keys."""
    written: dict = {"rope_type": "default"}
    if (scaling := rope.scaling) is not None:
        written = {"rope_type": "linear", "factor": scaling.factor}
        if scaling.is_llama3:
            written = {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_positions,
            }
    return written | {"rope_theta": rope.theta} | more


def _unsupported(cause: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{cause}\nSupported is rotary scaling of kind default, linear or llama3; see "
        "docs/architectures.md."
    )
