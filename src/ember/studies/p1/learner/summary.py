"""An update on completions: medians over repeats, and what sharing prompts gains (P1-6.1)."""

from ember.studies.p1.learner.tables import LEARNER, LEARNER_SPEED
from ember.studies.rows import grouped, records, summary_row
from ember.studies.steps import makes


@makes(LEARNER_SPEED)
def summarise_updates(updates) -> list[dict]:
    """Rows of LEARNER_SPEED from a LEARNER table: its path, a data frame or rows."""
    runs = grouped(records(updates, LEARNER), "point", "frozen_layers", "form")
    rows = {key: summary_row(LEARNER_SPEED, group)[0] for key, group in runs.items()}
    for (point, frozen, _), row in rows.items():
        alone = rows[point, frozen, "independent"]
        row["speedup"] = alone["ms_median"] / row["ms_median"]
        row["token_ratio"] = alone["tokens"] / row["tokens"]
    return list(rows.values())
