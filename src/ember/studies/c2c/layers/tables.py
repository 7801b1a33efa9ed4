"""Tables of mixed precision by layer (C-M6)."""

from ember.records import schema as s
from ember.studies.c2c.point_tables import compared

KINDS = ("last", "optimum", "backwards", "random", "named")

CONTROLS = ("backwards", "random")
"""Beginnings of the names of layer schedules that no one would choose."""

C2C_SCHEDULES = s.Schema(
    "c2c_schedules",
    "Layer schedules: what was chosen on the development split",
    (
        s.integer("world", "", "seed of world, models and fuser"),
        s.text("schedule", "its name"),
        s.text("kind", "how it was found", values=KINDS),
        s.text("rival", "schedule of as many bytes that it is compared with", nullable=True),
        s.maybe("budget", "fraction", "bytes that it may take, as a share of FP16's"),
        s.text("schemes", "by the receiver's layer"),
        s.text("sent", "by the sharer's layer that is sent, layer:scheme"),
        s.maybe("predicted_loss", "nats", "sum of its layers' sensitivities"),
        s.number("bytes_share", "fraction", "estimated bytes over FP16's"),
        s.number("effective_bits", "bits", "estimated, for each value of the passage's KV"),
        *s.MEASURED_ON,
    ),
    key=("world", "schedule"),
)

C2C_SENSITIVITY = s.Schema(
    "c2c_sensitivity",
    "What one layer in another scheme costs, all others in FP16, on the development split",
    (
        s.integer("world", "", "seed of world, models and fuser"),
        s.integer("layer", "", "of the sharer"),
        s.text("targets", "the receiver's layers that read it through an open gate"),
        s.text("scheme", "of this layer; none: not sent"),
        s.integer("questions", "", "of the first stratum"),
        *s.estimate("loss", "nats", "above the FP16 channel's, of the right answer", "passages"),
        s.number("accuracy_change", "fraction", "against the FP16 channel"),
        *s.MEASURED_ON,
    ),
    key=("world", "layer", "scheme"),
)

C2C_M6 = compared(
    "c2c_m6",
    "Layer schedules against the FP16 channel and each other",
    s.text("kind", "how the schedule was found; null: one scheme for all", nullable=True),
    s.text("rival", "point of as many bytes that it is compared with", nullable=True),
    s.maybe("rival_accuracy", "fraction", "the rival's (of random schedules, their mean)"),
    *s.estimate(
        "over_rival", "fraction", "difference to it on the same questions", "passages", s.maybe
    ),
    s.maybe("over_rival_p_holm", "", "of the paired test, corrected for the stratum (Holm)"),
)
