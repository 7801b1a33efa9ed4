"""One look for every figure, and one way to write it: PNG, PDF, caption, all with provenance.

Sizes are those of a two-column paper; colours are Okabe and Ito's, safe for colour-blind readers,
and every series also has its own marker or line style.
"""

import textwrap
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ember.measure.statistics import ends
from ember.records.atomic import atomic_file, write_text
from ember.records.provenance import figure_metadata

COLUMN = 3.4  # inches
PAGE = 7.0
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))

_RC = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "errorbar.capsize": 2,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "legend.frameon": False,
    "figure.dpi": 150,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,
    "figure.constrained_layout.use": True,
}


@contextmanager
def style() -> Iterator:
    """Draw inside this: gives pyplot with the project's look and no display."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context(_RC):
        yield plt
        plt.close("all")


def save(figure, stem: Path, caption: str, provenance: Mapping, words: str = "") -> None:
    """Write `stem`.png, `stem`.pdf and `stem`.caption.md, each whole or not at all.

    `words`: small print below the drawing, inside the image.
    """
    import matplotlib as mpl

    stem, metadata = Path(stem), figure_metadata(provenance)
    with mpl.rc_context(_RC):
        room = _print_below(figure, words)
        for ending in ("png", "pdf"):
            with atomic_file(stem.with_name(f"{stem.name}.{ending}")) as part:
                figure.savefig(part, format=ending, metadata=metadata, bbox_inches=room)
    write_text(stem.with_name(f"{stem.name}.caption.md"), caption.strip() + "\n")


def _print_below(figure, words: str):
    """Puts words below the figure, in lines as wide as it; gives the box of both in inches."""
    from matplotlib.transforms import Bbox

    (width, height), margin = figure.get_size_inches(), 0.04
    look = {"fontsize": 6, "color": "#555555", "va": "top", "linespacing": 1.15}
    # All keeps its place in the drawing: a larger box would move what stands outside of the axes.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for legend in figure.legends:
        legend.set_bbox_to_anchor((0, 0, 1, 1), transform=figure.transFigure)
    printed = figure.text(margin / width, 0.0, "", **look)
    for letters in range(len(words), 0, -1):
        printed.set_text("\n".join(textwrap.wrap(words, letters)))
        if printed.get_window_extent().width <= (width - 2 * margin) * figure.dpi:
            break
    below = printed.get_window_extent().y0 / figure.dpi - margin if words else 0
    return Bbox([[0, below], [width, height]])


def small_print(tables: Collection, scale: str) -> str:
    """What a drawing of these tables must say by itself, as images travel alone.

    Evidence, weights, number of runs or documents, models, formats, devices and the scale, as far
    as the tables' rows have them.
    """

    def found(name: str) -> list:
        return sorted(
            {value for table in tables if name in table for value in table[name].dropna()}
        )

    said = [" and ".join(found("evidence"))]
    said += [f"{' and '.join(kinds)} weights" for kinds in [found("weights")] if kinds]
    # Where strata have their own numbers of questions, the figure says them.
    plain = [] if any("stratum" in table for table in tables) else ["questions"]
    for name, items in (
        ("n", "runs"),
        *((kind, kind) for kind in ("documents", "streams", *plain)),
    ):
        counts = [f"{int(count)}" for count in found(name) if count > 0]
        if counts:
            said.append(f"n = {' to '.join(dict.fromkeys((counts[0], counts[-1])))} {items}")
    said += [", ".join(found(name)) for name in ("model", "dtype")]
    said.append(", ".join(found("device_name") or found("device")))
    return "; ".join(filter(None, [*said, f"scale {scale}"]))


def basis(table, scale: str) -> str:
    """One sentence for a caption: model, weights, device, number format, evidence and scale."""
    first = table.iloc[0]
    sentence = (
        f"Model {first['model']} ({first['weights']} weights), {first['dtype']} on "
        f"{first['device']}; evidence: {', '.join(sorted(set(table['evidence'])))}; "
        f"scale {scale}."
    )
    if scale == "smoke":
        sentence += " Scale smoke is a test of the workflow: no number here supports a claim."
    return sentence


def device_time(device: str) -> str:
    """What a second of this device is called on an axis."""
    return "GPU time" if device.startswith("cuda") else "CPU time"


def look(index: int) -> dict:
    """Colour, marker and line of the series number `index`."""
    return {"color": COLOURS[index], "marker": MARKERS[index], "linestyle": LINES[index]}


def panel(axes, letter: str, **where) -> None:
    """Name a panel of a figure."""
    axes.set_title(letter, loc="left", fontweight="bold", **where)


def label(axes, letter: str, x: str, y: str, **legend) -> None:
    """Name a panel and its axes, and put its legend where `legend` says, if it has one."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if legend:
        axes.legend(**legend)
    panel(axes, letter)


def legend_below(figure, axes, columns: int | None = None) -> None:
    """The legend of one panel for the whole figure."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns or len(labels))


def note(axes, text: str, at: tuple, offset: tuple, **look) -> None:
    """Small words beside a point of the data, `offset` in points."""
    look = {"textcoords": "offset points", "fontsize": 6} | look
    axes.annotate(text, at, xytext=offset, **look)


def powers_of_two(axes, values) -> None:
    """A logarithmic horizontal axis with a tick at each of the values."""
    ticks = sorted(set(values))
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.xaxis.minorticks_off()


def error(rows, middle: str, low: str, high: str, scale: float = 1.0) -> tuple:
    """Lengths of error bars around the column `middle`, down to `low` and up to `high`."""
    below, above = rows[middle] - rows[low], rows[high] - rows[middle]
    return scale * below.clip(lower=0), scale * above.clip(lower=0)


def spread(rows, name: str, scale: float = 1.0) -> tuple:
    """Lengths of error bars around `name`_median or `name`; `ends_in_words` says what they span."""
    middle = f"{name}_median" if f"{name}_median" in rows else name
    low, high = zip(*(ends(row, name) for row in rows.to_dict("records")), strict=True)
    return error(rows.assign(low=low, high=high), middle, "low", "high", scale)
