"""What the workflow itself costs: what a user types, every job, and jobs by rule."""

from ember.records import schema as s

OVERHEAD = ("start_s", "imports_s", "model_load_s", "provenance_s", "exit_s")
PARTS = (*OVERHEAD, "work_s")

WORKFLOW_STEPS = s.Schema(
    "workflow_steps",
    "Wall time of what a user types",
    (
        s.text("step", "what was typed"),
        s.integer("repeat", "", "run, from 0"),
        s.maybe("seconds", "s", "wall time"),
        s.maybe("goal_s", "s", "the project's goal for this step"),
        s.integer("jobs", "", "jobs that ran or were planned", nullable=True),
        s.integer("cores", "", "CPU cores of the machine"),
        s.EVIDENCE,
        *s.OUTCOME,
    ),
    key=("step", "repeat"),
)

_START = (
    "creation of the process to the script's body: interpreter, Snakemake's part, imports at the "
    "script's head"
)
_PARTS = (
    s.maybe("start_s", "s", _START),
    s.maybe("imports_s", "s", "torch in jobs that run a model, matplotlib in those that draw"),
    s.maybe("model_load_s", "s", "reading a model into memory"),
    s.maybe("provenance_s", "s", "hashing files, asking git and hardware"),
    s.maybe("exit_s", "s", "after the last product was written"),
    s.maybe("work_s", "s", "the rest of the wall time: what the job is for"),
)

WORKFLOW_JOBS = s.Schema(
    "workflow_jobs",
    "One row a job behind the products: how long it took, on what, and what of it was overhead",
    (
        s.text("scale", "scale it ran at"),
        s.text("stage", "file of rules/ that holds the rule"),
        s.text("rule", "rule"),
        s.text("job", "rule and wildcard values"),
        s.text("started", "ISO 8601, UTC"),
        s.number("wall_s", "s", "whole process, by Snakemake's benchmark or the job's own"),
        s.text("wall_from", "who measured it", values=("benchmark", "job")),
        *_PARTS,
        s.integer("threads", "", "CPU threads it was given"),
        s.maybe("cpu_s", "s", "CPU time, by Snakemake's benchmark"),
        s.maybe("max_rss_mb", "MB", "largest resident memory, sampled"),
        s.flag("timing", "it measured, and so ran alone"),
        s.integer("output_bytes", "bytes", "size of its products"),
        s.text("device", "cpu, or the accelerator it was given"),
        s.text("machine", "processor and accelerator of the machine"),
        s.text("node", "host name", nullable=True),
        s.EVIDENCE,
    ),
    key=("scale", "job"),
)

_OVERHEAD = (
    "start, imports, model loading, provenance, exit and scheduling, of wall time and scheduling"
)
_SCHEDULING = "what Snakemake adds around jobs: jobs x the measured cost of an empty one"

WORKFLOW_COST = s.Schema(
    "workflow_cost",
    "Wall time of all jobs by rule and in all, and the share that is not the rule's own work",
    (
        s.text("scale", "scale the jobs ran at"),
        s.text("stage", "file of rules/ that holds the rule; all for a total"),
        s.text("rule", "rule; all for a total"),
        s.integer("jobs", "", "jobs"),
        s.number("wall_s", "s", "wall time, summed over jobs"),
        s.number("share", "fraction", "of the wall time of all jobs"),
        *_PARTS,
        s.number("scheduling_s", "s", _SCHEDULING),
        s.maybe("overhead_share", "fraction", _OVERHEAD),
        s.maybe("goal", "fraction", "the goal for the overhead's share"),
        s.integer("cores", "", "CPU cores of the machine that timed workflow_steps"),
        s.EVIDENCE,
    ),
    key=("scale", "stage", "rule"),
)
