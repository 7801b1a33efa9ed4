"""Tables of selective transfer (C-M8)."""

from ember.records import schema as s
from ember.studies.c2c.point_tables import compared

C2C_M8 = compared(
    "c2c_m8",
    "Which tokens are sent: against the FP16 channel, and against `back` at equal bytes",
    s.flag("oracle", "whether choosing needs the receiver's own KV, whose traffic is charged"),
    s.maybe("back_accuracy", "fraction", "of `back` in the same scheme, at as many bytes"),
    *s.estimate(
        "over_back", "fraction", "difference to it on the same questions", "passages", s.maybe
    ),
    s.maybe("over_back_p_holm", "", "of the paired test, corrected for the stratum (Holm)"),
    s.text("verdict", "against `back`: better, no difference, worse", nullable=True),
)

C2C_OVERLAP = s.Schema(
    "c2c_overlap",
    "Share of the tokens that one selector chooses which another chooses too",
    (
        s.integer("world", "", "seed of world, models and fuser"),
        s.text("mode", "selector"),
        s.text("other", "another"),
        s.number("proportion", "fraction", "of the tokens that each chooses"),
        s.integer("passages", "", "over which it is the mean"),
        s.number("overlap", "fraction", "of the tokens of `mode`; by chance it is the proportion"),
        *s.MEASURED_ON,
    ),
    key=("world", "mode", "other"),
)

C2C_STAGE_TIMES = s.Schema(
    "c2c_selection_times",
    "Stages of selective transfer for a batch of passages, run by run",
    (
        s.text("mode", "selector"),
        s.number("proportion", "fraction", "of the tokens that are sent"),
        s.flag("sparse_fuse", "whether only tokens that were sent are projected"),
        s.integer("repeat", "", "number of the run"),
        s.integer("passages", "", "at once"),
        s.integer("tokens", "tokens", "sent, of all passages"),
        s.number("score_ms", "ms", "ranking tokens"),
        s.number("select_ms", "ms", "choosing those with the highest scores"),
        s.number("project_ms", "ms", "the fuser's branches"),
        s.number("fuse_ms", "ms", "gathering, adding and scattering"),
        *s.MEASURED_ON,
    ),
    key=("mode", "proportion", "sparse_fuse", "repeat"),
)

C2C_M8_STAGES = s.Schema(
    "c2c_m8_stages",
    "Stages of selective transfer for a batch of passages",
    (
        s.text("mode", "selector"),
        s.number("proportion", "fraction", "of the tokens that are sent"),
        s.flag("sparse_fuse", "whether only tokens that were sent are projected"),
        s.integer("n", "", "runs"),
        s.integer("passages", "", "at once"),
        s.integer("tokens", "tokens", "sent, of all passages"),
        *s.spread("score_ms", "ms", "ranking tokens"),
        *s.spread("select_ms", "ms", "choosing those with the highest scores"),
        *s.spread("project_ms", "ms", "the fuser's branches"),
        *s.spread("fuse_ms", "ms", "gathering, adding and scattering"),
        s.number("project_share", "fraction", "of the time of projecting every token"),
        *s.MEASURED_ON,
    ),
    key=("mode", "proportion", "sparse_fuse"),
)
