"""What the workflow itself costs: what a user types, every job, and jobs by rule."""

from ember.records.schema import (
    EVIDENCE,
    REASON,
    STATUS,
    Schema,
    flag,
    integer,
    maybe,
    number,
    text,
)

WORKFLOW_STEPS = Schema(
    "workflow_steps",
    "Wall time of what a user types",
    (
        text("step", "what was typed"),
        integer("repeat", "", "run, from 0"),
        maybe("seconds", "s", "wall time"),
        maybe("goal_s", "s", "the project's goal for this step"),
        integer("jobs", "", "jobs that ran or were planned", nullable=True),
        integer("cores", "", "CPU cores of the machine"),
        EVIDENCE,
        STATUS,
        REASON,
    ),
    key=("step", "repeat"),
)

_START = (
    "creation of the process to the script's body: interpreter, Snakemake's part, imports at the "
    "script's head"
)
_PARTS = (
    maybe("start_s", "s", _START),
    maybe("imports_s", "s", "torch in jobs that run a model, matplotlib in those that draw"),
    maybe("model_load_s", "s", "reading a model into memory"),
    maybe("provenance_s", "s", "hashing files, asking git and hardware"),
    maybe("exit_s", "s", "after the last product was written"),
    maybe("work_s", "s", "the rest of the wall time: what the job is for"),
)

WORKFLOW_JOBS = Schema(
    "workflow_jobs",
    "One row a job behind the products: how long it took, on what, and what of it was overhead",
    (
        text("scale", "scale it ran at"),
        text("stage", "file of rules/ that holds the rule"),
        text("rule", "rule"),
        text("job", "rule and wildcard values"),
        text("started", "ISO 8601, UTC"),
        number("wall_s", "s", "whole process, by Snakemake's benchmark or the job's own"),
        text("wall_from", "who measured it", values=("benchmark", "job")),
        *_PARTS,
        integer("threads", "", "CPU threads it was given"),
        maybe("cpu_s", "s", "CPU time, by Snakemake's benchmark"),
        maybe("max_rss_mb", "MB", "largest resident memory, sampled"),
        flag("timing", "it measured, and so ran alone"),
        integer("output_bytes", "bytes", "size of its products"),
        text("device", "cpu, or the accelerator it was given"),
        text("machine", "processor and accelerator of the machine"),
        text("node", "host name", nullable=True),
        EVIDENCE,
    ),
    key=("scale", "job"),
)

_OVERHEAD = (
    "start, imports, model loading, provenance, exit and scheduling, of wall time and scheduling"
)
_SCHEDULING = "what Snakemake adds around jobs: jobs x the measured cost of an empty one"

WORKFLOW_COST = Schema(
    "workflow_cost",
    "Wall time of all jobs by rule and in all, and the share that is not the rule's own work",
    (
        text("scale", "scale the jobs ran at"),
        text("stage", "file of rules/ that holds the rule; all for a total"),
        text("rule", "rule; all for a total"),
        integer("jobs", "", "jobs"),
        number("wall_s", "s", "wall time, summed over jobs"),
        number("share", "fraction", "of the wall time of all jobs"),
        *_PARTS,
        number("scheduling_s", "s", _SCHEDULING),
        maybe("overhead_share", "fraction", _OVERHEAD),
        maybe("goal", "fraction", "the goal for the overhead's share"),
        integer("cores", "", "CPU cores of the machine that made this table"),
        EVIDENCE,
    ),
    key=("scale", "stage", "rule"),
)
