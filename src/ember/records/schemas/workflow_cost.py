"""What the workflow itself costs a user: installation, first figure, no-op rerun, dry run."""

from ember.records.schema import EVIDENCE, Column, Schema

WORKFLOW_COST = Schema(
    "workflow_cost",
    "Wall time of what a user types, on a fresh clone",
    (
        Column("step", "str", "", "what was typed"),
        Column("repeat", "int", "", "run, from 0"),
        Column("seconds", "float", "s", "wall time"),
        Column("goal_s", "float", "s", "the project's goal for this step", nullable=True),
        Column("jobs", "int", "", "jobs that ran or were planned", nullable=True),
        Column("cores", "int", "", "CPU cores of the machine"),
        EVIDENCE,
    ),
    key=("step", "repeat"),
)
