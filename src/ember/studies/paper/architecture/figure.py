"""The house as a diagram for the talk: its layers and packages, read from their import contract.

The contract in `pyproject.toml` is what `lint-imports` holds the code to, so that the drawing is
what the code is. Only the few words in a box are written here.
"""

import tomllib
from pathlib import Path

from ember.records.errors import EmberError
from ember.studies.steps import reads
from ember.studies.style import PAGE, style

ROLES = {
    "commands": "one file for each command of ember",
    "studies": "tables · measure · summary · figure of each study",
    "operations": "jobs, preflight, plan, estimate, doctor",
    "policies": "cache policies: plans, simulator, cost",
    "peers": "other frameworks behind one protocol",
    "streaming": "eviction methods over a bounded cache",
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


class BadContract(EmberError):
    """An import contract that says no layers, or not those that there are."""


def read_layers(contract: str | Path) -> list[list[str]]:
    """Packages of each layer, the highest first, of the contract `layers` in a pyproject.toml.

    Raises BadContract where it is not there, or a package beside it stands in no layer.
    """
    contract = Path(contract)
    found = tomllib.loads(contract.read_text("utf-8")).get("tool", {}).get("importlinter", {})
    layers = [one["layers"] for one in found.get("contracts", ()) if one.get("type") == "layers"]
    if len(layers) != 1:
        raise BadContract(
            f"{contract} has {len(layers)} import contracts of type layers\n"
            "declare one under [[tool.importlinter.contracts]]"
        )
    rows = [[name.strip().rpartition(".")[2] for name in row.split("|")] for row in layers[0]]
    source = contract.parent / "src" / found["root_package"]
    there = {file.parent.name for file in source.glob("*/__init__.py")}
    if odd := sorted(there ^ {name for row in rows for name in row}):
        raise BadContract(
            f"{', '.join(odd)}: in {source} or in the layers of {contract}, not in both\n"
            "give each package its layer"
        )
    return rows


@reads()
def draw(contract: str | Path, scale: str):
    """Figure and caption from the import contract in `contract`, a pyproject.toml."""
    layers = read_layers(contract)
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


def _caption(layers: list[list[str]]) -> str:
    packages = sum(map(len, layers))
    return (
        f"**Architecture.** The library's {packages} packages in {len(layers)} layers, the "
        "workflow above them. A package imports only from layers below its own; packages side by "
        "side do not import each other. Drawn from the import contract in pyproject.toml, to which "
        "lint-imports holds the code."
    )
