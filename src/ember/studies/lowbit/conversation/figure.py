"""Time to the first token and cached length by turn."""

import pandas as pd

from ember.studies.lowbit.conversation.tables import LOWBIT_CONVERSATION
from ember.studies.steps import reads
from ember.studies.style import COLOURS, MARKERS, PAGE, basis, error, label, style

NAMES = {"kept": "KV kept", "replay": "full replay"}


@reads(turns=LOWBIT_CONVERSATION)
def draw(turns: pd.DataFrame, scale: str):
    """Figure and caption from the table `lowbit_conversation`."""
    with style() as plt:
        figure, (times, lengths) = plt.subplots(1, 2, figsize=(PAGE, 2.4))
        for index, (kind, rows) in enumerate(turns.groupby("kind", sort=True)):
            looks = {"color": COLOURS[index], "marker": MARKERS[index], "label": NAMES[kind]}
            bars = error(rows, "prefill_ms_median", "prefill_ms_min", "prefill_ms_max")
            times.errorbar(rows["turn"], rows["prefill_ms_median"], yerr=bars, **looks)
        kept = turns[turns["kind"] == "kept"]
        lengths.bar(kept["turn"], kept["cached_tokens"], color=COLOURS[0], label="reused")
        new = kept["user_tokens"]
        lengths.bar(
            kept["turn"], new, bottom=kept["cached_tokens"], color=COLOURS[4], label="prefilled"
        )
        label(times, "a  time to the first token", "turn", "prefill (ms)", loc="best")
        label(lengths, "b  tokens of the turn's prompt, KV kept", "turn", "tokens", loc="best")
        for axes in (times, lengths):
            axes.set_xticks(sorted(set(turns["turn"])))
            axes.set_ylim(bottom=0)
        last = turns[turns["turn"] == turns["turn"].max()].set_index("kind")["prefill_ms_median"]
        same = "the same tokens" if turns["equal"].all() else "NOT THE SAME TOKENS in every turn"
        caption = (
            "**A conversation whose KV stays.** a: from the user's words to the first logits of "
            "the answer, median and range; b: what of the prompt is reused. In the last turn "
            f"{last['kept']:.1f} ms against {last['replay']:.1f} ms with a full replay; answers "
            f"are {same}. {basis(turns, scale)}"
        )
        return figure, caption
