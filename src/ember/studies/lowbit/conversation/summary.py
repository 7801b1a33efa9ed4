"""Medians by turn, and whether keeping the KV changed any answer."""

from ember.studies.lowbit.conversation.tables import LOWBIT_CONVERSATION, TURN_RUNS
from ember.studies.rows import grouped, records, summary_row
from ember.studies.steps import makes


@makes(LOWBIT_CONVERSATION)
def summarise_turns(runs) -> list[dict]:
    """Rows of LOWBIT_CONVERSATION."""
    runs = records(runs, TURN_RUNS)
    answers = {
        turn: {(run["answer_sha256"], run["length"]) for run in some}
        for (turn,), some in grouped(runs, "turn").items()
    }
    found = []
    for some in grouped(runs, "kind", "turn").values():
        row, _ = summary_row(LOWBIT_CONVERSATION, some)
        found.append(row | {"equal": len(answers[row["turn"]]) == 1})
    return found
