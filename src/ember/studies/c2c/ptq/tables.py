"""Tables of quantised channels: accuracy by scheme and axis, and the scales (C-M1, C-M2)."""

from ember.records import schema as s
from ember.studies.c2c.point_tables import compared

C2C_M1 = compared(
    "c2c_m1",
    "Schemes on every axis that they have, against the FP16 channel",
    s.text("row", "row of the programme's table", nullable=True),
)

C2C_SCALES = s.Schema(
    "c2c_scales",
    "Scales that are sent, by layer",
    (
        s.integer("world", "", "seed of world, models and fuser"),
        s.text("point", "scheme and axis"),
        s.integer("layer", "", "of the sharer"),
        s.text("kv", "keys or values", values=("keys", "values")),
        s.integer("passages", "", "whose scales were taken"),
        s.integer("scales", "", "of a passage"),
        s.number("scale_min", "", "least"),
        s.number("scale_max", "", "greatest"),
        s.number("scale_mean", "", "mean"),
        s.Column("edges", "list[float]", "log2", "of the histogram's bins, powers of two"),
        s.Column("counts", "list[int]", "", "scales in each"),
        *s.MEASURED_ON,
    ),
    key=("world", "point", "layer", "kv"),
)
