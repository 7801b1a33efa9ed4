"""What the workflow's jobs cost by rule, and the share of it that is not their own work."""

import math
from collections.abc import Sequence
from statistics import median

from ember.records.errors import BadProvenance
from ember.studies.rows import grouped, records
from ember.studies.steps import makes
from ember.studies.workflow.cost import tables as t

ALL = "all"


@makes(t.WORKFLOW_COST)
def cost_by_rule(jobs, steps, goal: float) -> list[dict]:
    """Rows of WORKFLOW_COST: by rule, by stage and in all, for each scale.

    Args: jobs: a table WORKFLOW_JOBS; steps: a table WORKFLOW_STEPS, whose empty jobs say what
    Snakemake adds around a job; goal: for the overhead's share of the total.
    """
    jobs, steps = records(jobs, t.WORKFLOW_JOBS), records(steps, t.WORKFLOW_STEPS)
    around, cores = scheduling_s(steps), steps[0]["cores"]
    rows = []
    for scale in dict.fromkeys(job["scale"] for job in jobs):
        here = [job for job in jobs if job["scale"] == scale]
        total = sum(job["wall_s"] for job in here)
        groups = grouped(here, "stage", "rule")
        groups |= {(stage, ALL): some for (stage,), some in grouped(here, "stage").items()}
        groups[ALL, ALL] = here
        made = [
            {"scale": scale, "stage": stage, "rule": rule, "cores": cores}
            | _summed(members, total, around, goal if (stage, rule) == (ALL, ALL) else None)
            for (stage, rule), members in groups.items()
        ]
        # The total first, then the stages by their time, each followed by its rules.
        by_stage = {row["stage"]: -row["wall_s"] for row in made if row["rule"] == ALL}
        by_stage[ALL] = -math.inf
        made.sort(key=lambda r: (by_stage[r["stage"]], r["stage"], r["rule"] != ALL, -r["wall_s"]))
        rows += made
    return rows


def scheduling_s(steps: Sequence[dict]) -> float:
    """Seconds that Snakemake adds around a job: an empty job less its process, median of repeats.

    Raises `BadProvenance` where they were not timed.
    """
    times = grouped((row for row in steps if row["status"] == "ok"), "step")
    try:
        whole, process = (
            median(row["seconds"] for row in times[name,]) for name in ("empty job", "its process")
        )
    except KeyError as error:
        raise BadProvenance(
            f"the table workflow_steps has no row {error.args[0][0]!r}\n"
            "make it again: rule time_workflow"
        ) from None
    return max(0.0, whole - process)


def _summed(jobs: list[dict], total: float, around: float, goal: float | None) -> dict:
    wall, scheduling = sum(job["wall_s"] for job in jobs), around * len(jobs)
    parts = {key: _total(jobs, key) for key in t.PARTS}
    known = None not in (parts["start_s"], parts["exit_s"])
    overhead = sum(parts[key] or 0.0 for key in t.OVERHEAD) + scheduling
    return {
        "jobs": len(jobs),
        "wall_s": wall,
        "share": wall / total,
        **parts,
        "scheduling_s": scheduling,
        "overhead_share": overhead / (wall + scheduling) if known else None,
        "goal": goal,
        "evidence": "measured",
    }


def _total(jobs: list[dict], key: str) -> float | None:
    values = [job[key] for job in jobs]
    return None if None in values else sum(values)
