"""The house as a diagram for the talk: its layers and packages, as their import contract has them.

Only the few words in a box are written here.
"""

from collections.abc import Sequence

from ember.studies.steps import reads
from ember.studies.style import PAGE, style

ROLES = {
    "commands": "one file for each command of ember",
    "studies": "tables · measure · summary · figure of each study",
    "operations": "jobs, preflight, plan, estimate, doctor",
    "policies": "cache policies, cost",
    "c2c": "fused caches",
    "streaming": "KV eviction",
    "lowbit": "4-bit weights",
    "peers": "other frameworks",
    "pipeline": "a model on two stages in two processes",
    "engine": "requests, scheduler, prefill strategies",
    "backends": "three forms of a layer: eager decoder · compiled C step · CUDA kernels",
    "optim": "training loop, losses, optimizers",
    "cache": "one cache protocol and its kinds",
    "lora": "adapters, merged in one pass",
    "model": "one decoder for all architectures; weights in and out",
    "formats": "number formats: quantise, pack, unpack",
    "text": "corpora, tokenizer, n-gram baselines",
    "config": "typed settings, one file a programme",
    "measure": "clocks, statistics, memory, cost of a step",
    "records": "tables, provenance, code hashes, atomic writes, errors",
}
_HEIGHT, _GAP, _ASIDE = 0.78, 0.12, 0.12  # of a layer of height 1; inches beside the boxes
_FILL, _GREY = "#dcebf5", "#eeeeee"


@reads()
def draw(layers: Sequence[Sequence[str]], scale: str):
    """Figure and caption of packages by layer, the highest first (`operations.layers`)."""
    with style() as plt:
        figure, axes = plt.subplots(figsize=(PAGE, 0.36 * (len(layers) + 1.5)))
        axes.set_axis_off()
        axes.set_xlim(-0.03, PAGE + 0.03)
        axes.set_ylim(-len(layers), 1.5)
        _box(axes, 0.0, 0.55, PAGE, "workflow", _WORKFLOW, _GREY)
        width = PAGE - 0.55
        for depth, names in enumerate(layers):
            part = (width + _ASIDE) / len(names)
            for place, name in enumerate(names):
                where = (place * part, -depth - _HEIGHT, part - _ASIDE)
                _box(axes, *where, name, ROLES.get(name, ""), _FILL)
        look = {"arrowstyle": "-|>", "color": "#444444", "linewidth": 1.2}
        at = PAGE - 0.36
        axes.annotate("", (at, _GAP - len(layers)), (at, 0.0), arrowprops=look)
        words = {"rotation": 90, "ha": "center", "va": "center", "fontsize": 7, "color": "#444444"}
        axes.text(PAGE - 0.14, -len(layers) / 2, "imports only downwards", **words)
        return figure, _caption(layers)


_WORKFLOW = "Snakefile, rules, profiles: a rule names a step of a study, a script connects the two"


def _box(axes, left: float, bottom: float, width: float, name: str, role: str, fill: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    shape = FancyBboxPatch(
        (left + 0.03, bottom + 0.03),
        width - 0.06,
        _HEIGHT - 0.06,
        boxstyle="round,pad=0.03",
        facecolor=fill,
        edgecolor="#555555",
        linewidth=0.6,
    )
    axes.add_patch(shape)
    middle = {"ha": "center", "va": "center"}
    centre = left + width / 2
    axes.text(centre, bottom + _HEIGHT * 0.69, name, fontweight="bold", fontsize=8, **middle)
    axes.text(centre, bottom + _HEIGHT * 0.27, role, fontsize=6, color="#333333", **middle)


def _caption(layers: Sequence[Sequence[str]]) -> str:
    packages = sum(map(len, layers))
    return (
        f"**Architecture.** The library's {packages} packages in {len(layers)} layers, the "
        "workflow above them. A package imports only from layers below its own; packages side by "
        "side do not import each other. Drawn from the import contract in pyproject.toml, to which "
        "lint-imports holds the code."
    )
