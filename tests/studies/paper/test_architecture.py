"""The diagram is what the import contract and the packages are."""

from pathlib import Path

import pytest

from ember.operations.layers import read_layers
from ember.records.errors import EmberError
from ember.studies.paper.architecture.figure import ROLES, draw

ROOT = Path(__file__).parents[3]
CONTRACT = """
[tool.importlinter]
root_package = "house"

[[tool.importlinter.contracts]]
type = "layers"
layers = ["house.roof", "house.left | house.right", "house.cellar"]
"""


@pytest.fixture
def house(tmp_path):
    (tmp_path / "pyproject.toml").write_text(CONTRACT)
    for name in ("roof", "left", "right", "cellar"):
        (tmp_path / "src/house" / name).mkdir(parents=True)
        (tmp_path / "src/house" / name / "__init__.py").touch()
    return tmp_path


def test_layers_are_the_contracts(house):
    assert read_layers(house / "pyproject.toml") == [["roof"], ["left", "right"], ["cellar"]]
    figure, caption = draw(read_layers(house / "pyproject.toml"), "tiny")
    words = [text.get_text() for text in figure.axes[0].texts]
    assert [word for word in words if word in ("roof", "left", "right", "cellar")] == [
        *("roof", "left", "right", "cellar")
    ]
    assert "4 packages in 3 layers" in caption


def test_a_package_without_a_layer_is_refused(house):
    (house / "src/house/shed").mkdir()
    (house / "src/house/shed/__init__.py").touch()
    with pytest.raises(EmberError, match="shed: in"):
        read_layers(house / "pyproject.toml")


def test_a_contract_without_layers_is_refused(house):
    (house / "pyproject.toml").write_text("[project]\n")
    with pytest.raises(EmberError, match="has 0 import contracts"):
        read_layers(house / "pyproject.toml")


def test_every_package_has_its_words():
    packages = [name for row in read_layers(ROOT / "pyproject.toml") for name in row]
    assert sorted(packages) == sorted(ROLES)


def test_no_words_leave_their_box():
    figure, _ = draw(read_layers(ROOT / "pyproject.toml"), "tiny")
    figure.canvas.draw()
    [axes] = figure.axes
    boxes = [patch.get_window_extent() for patch in axes.patches]
    words = [text for text in axes.texts if text.get_text() and not text.get_rotation()]
    assert len(words) == 2 * len(boxes)
    for place, text in enumerate(words):
        box, around = text.get_window_extent(), boxes[place // 2]
        assert around.x0 <= box.x0 <= box.x1 <= around.x1, text.get_text()
        assert around.y0 <= box.y0 <= box.y1 <= around.y1, text.get_text()
