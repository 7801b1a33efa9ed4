"""The layers of the library, from the import contract that `lint-imports` holds the code to."""

import tomllib
from pathlib import Path

from ember.records.errors import EmberError


def read_layers(contract: str | Path) -> list[list[str]]:
    """Packages of each layer, the highest first, of the contract `layers` in a pyproject.toml.

    Raises EmberError where it is not there, or a package beside it stands in no layer.
    """
    contract = Path(contract)
    found = tomllib.loads(contract.read_text("utf-8")).get("tool", {}).get("importlinter", {})
    layers = [one["layers"] for one in found.get("contracts", ()) if one.get("type") == "layers"]
    if len(layers) != 1:
        raise EmberError(
            f"{contract} has {len(layers)} import contracts of type layers\n"
            "declare one under [[tool.importlinter.contracts]]"
        )
    rows = [[name.strip().rpartition(".")[2] for name in row.split("|")] for row in layers[0]]
    source = contract.parent / "src" / found["root_package"]
    there = {file.parent.name for file in source.glob("*/__init__.py")}
    if odd := sorted(there ^ {name for row in rows for name in row}):
        raise EmberError(
            f"{', '.join(odd)}: in {source} or in the layers of {contract}, not in both\n"
            "give each package its layer"
        )
    return rows
