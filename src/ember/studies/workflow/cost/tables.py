"""What the workflow itself costs: what a user types, every job, and jobs by rule."""

from ember.records.schema import EVIDENCE, REASON, STATUS, Column, Schema

WORKFLOW_STEPS = Schema(
    "workflow_steps",
    "Wall time of what a user types",
    (
        Column("step", "str", "", "what was typed"),
        Column("repeat", "int", "", "run, from 0"),
        Column("seconds", "float", "s", "wall time", nullable=True),
        Column("goal_s", "float", "s", "the project's goal for this step", nullable=True),
        Column("jobs", "int", "", "jobs that ran or were planned", nullable=True),
        Column("cores", "int", "", "CPU cores of the machine"),
        EVIDENCE,
        STATUS,
        REASON,
    ),
    key=("step", "repeat"),
)

_PARTS = (
    Column(
        "start_s",
        "float",
        "s",
        "creation of the process to the script's body: interpreter, Snakemake's part, imports at "
        "the script's head",
        nullable=True,
    ),
    Column(
        "imports_s",
        "float",
        "s",
        "torch in jobs that run a model, matplotlib in those that draw",
        nullable=True,
    ),
    Column("model_load_s", "float", "s", "reading a model into memory", nullable=True),
    Column("provenance_s", "float", "s", "hashing files, asking git and hardware", nullable=True),
    Column("exit_s", "float", "s", "after the last product was written", nullable=True),
    Column("work_s", "float", "s", "the rest of the wall time: what the job is for", nullable=True),
)

WORKFLOW_JOBS = Schema(
    "workflow_jobs",
    "One row a job behind the products: how long it took, on what, and what of it was overhead",
    (
        Column("scale", "str", "", "scale it ran at"),
        Column("stage", "str", "", "file of rules/ that holds the rule"),
        Column("rule", "str", "", "rule"),
        Column("job", "str", "", "rule and wildcard values"),
        Column("started", "str", "", "ISO 8601, UTC"),
        Column("wall_s", "float", "s", "whole process, by Snakemake's benchmark or the job's own"),
        Column("wall_from", "str", "", "who measured it", values=("benchmark", "job")),
        *_PARTS,
        Column("threads", "int", "", "CPU threads it was given"),
        Column("cpu_s", "float", "s", "CPU time, by Snakemake's benchmark", nullable=True),
        Column("max_rss_mb", "float", "MB", "largest resident memory, sampled", nullable=True),
        Column("timing", "bool", "", "it measured, and so ran alone"),
        Column("output_bytes", "int", "bytes", "size of its products"),
        Column("device", "str", "", "cpu, or the accelerator it was given"),
        Column("machine", "str", "", "processor and accelerator of the machine"),
        Column("node", "str", "", "host name", nullable=True),
        EVIDENCE,
    ),
    key=("scale", "job"),
)

WORKFLOW_COST = Schema(
    "workflow_cost",
    "Wall time of all jobs by rule and in all, and the share that is not the rule's own work",
    (
        Column("scale", "str", "", "scale the jobs ran at"),
        Column("stage", "str", "", "file of rules/ that holds the rule; all for a total"),
        Column("rule", "str", "", "rule; all for a total"),
        Column("jobs", "int", "", "jobs"),
        Column("wall_s", "float", "s", "wall time, summed over jobs"),
        Column("share", "float", "fraction", "of the wall time of all jobs"),
        *_PARTS,
        Column(
            "scheduling_s",
            "float",
            "s",
            "what Snakemake adds around jobs: jobs x the measured cost of an empty one",
        ),
        Column(
            "overhead_share",
            "float",
            "fraction",
            "start, imports, model loading, provenance, exit and scheduling, of wall time and "
            "scheduling",
            nullable=True,
        ),
        Column("goal", "float", "fraction", "the goal for the overhead's share", nullable=True),
        Column("cores", "int", "", "CPU cores of the machine that made this table"),
        EVIDENCE,
    ),
    key=("scale", "stage", "rule"),
)
