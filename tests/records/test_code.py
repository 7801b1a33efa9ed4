"""The code hash follows the imports, and only what the imports mean."""

import subprocess
import sys
from pathlib import Path

import pytest

from ember.records import code
from ember.records.code import BadCode, Library

FILES = {
    "ember/__init__.py": "",
    "ember/records/__init__.py": "",
    "ember/records/tables.py": "import json\nVERSION = 1\n",
    "ember/model/__init__.py": "from .shape import SIDE\n",
    "ember/model/shape.py": "SIDE = 4\n",
    "ember/model/decoder.py": "from ..records import tables\nfrom . import shape\n",
    "ember/engine/__init__.py": "",
    "ember/engine/step.py": "def run():\n    from ember.model.decoder import shape\n",
    "ember/lonely.py": "import ember.engine.step\n",
    "ember/one.py": "import ember.two\n",
    "ember/two.py": "import ember.one\n",
}


@pytest.fixture
def tree(tmp_path):
    src = tmp_path / "src"
    for name, text in FILES.items():
        (src / name).parent.mkdir(parents=True, exist_ok=True)
        (src / name).write_text(text)
    return src


def script(tree, text, name="job.py"):
    path = tree.parent / name
    path.write_text(text)
    return path


def closure(script, src, *modules):
    return Library(src).closure(script, *modules)


def code_hash(script, src, *modules):
    return Library(src).code_hash(script, *modules)


def reached(tree, text):
    return {f.relative_to(tree / "ember").as_posix() for f in closure(script(tree, text), tree)}


@pytest.mark.parametrize(
    ("text", "modules"),
    [
        ("import json", set()),
        ("import ember", {"__init__.py"}),
        ("import emberly.records", set()),
        (
            "from ember.records.tables import VERSION",
            {"__init__.py", "records/__init__.py", "records/tables.py"},
        ),
        (
            "from ember.records import tables",
            {"__init__.py", "records/__init__.py", "records/tables.py"},
        ),
        ("from ember.records import *", {"__init__.py", "records/__init__.py"}),
        (
            "import ember.model.shape as s",
            {"__init__.py", "model/__init__.py", "model/shape.py"},
        ),
        ("from ember.one import x", {"__init__.py", "one.py", "two.py"}),
        ("if False:\n    import ember.two", {"__init__.py", "one.py", "two.py"}),
        (
            "from ember.engine.step import run",
            {
                *("__init__.py", "engine/__init__.py", "engine/step.py", "model/__init__.py"),
                *("model/decoder.py", "model/shape.py", "records/__init__.py", "records/tables.py"),
            },
        ),
        ("from ember.gone import x", {"__init__.py"}),
    ],
)
def test_closure(tree, text, modules):
    assert reached(tree, text) == modules


@pytest.mark.parametrize("module", sorted(FILES))
def test_editing_a_module_changes_exactly_its_dependants(tree, module):
    scripts = [
        script(tree, "from ember.engine.step import run", "a.py"),
        script(tree, "from ember.records import tables", "b.py"),
        script(tree, "import ember.lonely", "c.py"),
        script(tree, "import ember.one", "d.py"),
    ]
    before = [code_hash(s, tree) for s in scripts]
    depends = [tree / module in closure(s, tree) for s in scripts]
    (tree / module).write_text(FILES[module] + "EDITED = True\n")
    changed = [code_hash(s, tree) != old for s, old in zip(scripts, before, strict=True)]
    assert changed == depends
    (tree / module).write_text(FILES[module])
    assert [code_hash(s, tree) for s in scripts] == before


def test_comments_docstrings_and_layout_do_not_count(tree):
    job = script(tree, "import ember.model.decoder\nx = [1,2]\n")
    before = code_hash(job, tree)
    job.write_text('"""Says what it does."""\n\nimport ember.model.decoder\n\nx = [1, 2]  # two\n')
    (tree / "ember/model/shape.py").write_text('"""Shapes."""\nSIDE = 4  # tokens\n')
    (tree / "ember/records/tables.py").touch()
    assert code_hash(job, tree) == before
    job.write_text("import ember.model.decoder\nx = [1, 3]\n")
    assert code_hash(job, tree) != before


def test_a_docstring_is_not_just_any_string(tree):
    one = code_hash(script(tree, 'def f():\n    "doc"\n    return 1\n'), tree)
    two = code_hash(script(tree, 'def f():\n    "other doc"\n    return 1\n'), tree)
    three = code_hash(script(tree, 'def f():\n    return "doc"\n'), tree)
    assert one == two
    assert one != three


def test_a_module_that_appears_counts(tree):
    job = script(tree, "from ember.gone import x")
    before = code_hash(job, tree)
    (tree / "ember/gone.py").write_text("x = 1\n")
    assert code_hash(job, tree) != before


def test_compiled_code_belongs_to_the_module_of_its_name(tree):
    text = "import ember.engine.step"
    before, other = (
        code_hash(script(tree, text), tree),
        code_hash(script(tree, "import ember"), tree),
    )
    source = tree / "ember/engine/step.c"
    source.write_text("int x;\n")
    assert "engine/step.c" in reached(tree, text)
    added = code_hash(script(tree, text), tree)
    source.write_text("int y;\n")
    assert len({before, added, code_hash(script(tree, text), tree)}) == 3
    assert code_hash(script(tree, "import ember"), tree) == other


def test_the_place_of_the_checkout_does_not_count(tree, tmp_path):
    job = script(tree, "import ember.one")
    other = tmp_path / "elsewhere"
    other.mkdir()
    tree.rename(other / "src")
    moved = job.rename(other / "job.py")
    tree_hash = code_hash(moved, other / "src")
    (other / "src").rename(tree)
    assert code_hash(moved.rename(job), tree) == tree_hash


def fresh_process(job, tree):
    command = (
        "import sys; from ember.records.code import Library; "
        "print(Library(sys.argv[2]).code_hash(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", command, str(job), str(tree)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_what_is_remembered_is_right_in_the_next_process(tree):
    job = script(tree, "from ember.engine.step import run")
    first = fresh_process(job, tree)
    memory = list((tree / "ember/__pycache__").glob("code.*.json"))
    assert len(memory) == 1
    assert fresh_process(job, tree) == first == code_hash(job, tree)
    (tree / "ember/model/shape.py").write_text("SIDE = 5\n")
    second = fresh_process(job, tree)
    assert second != first
    memory[0].write_text('{"damaged": ')
    assert fresh_process(job, tree) == second
    memory[0].write_text('["not", "a", "mapping"]')
    assert fresh_process(job, tree) == second


def test_bad_code_is_named(tree):
    (tree / "ember/two.py").write_text("def broken(:\n")
    with pytest.raises(BadCode, match=r"two\.py, line 1: "):
        code_hash(script(tree, "import ember.one"), tree)
    with pytest.raises(BadCode, match=r"gone\.py cannot be read: No such file"):
        code_hash(tree / "gone.py", tree)


def test_the_library_itself():
    src = Path(code.__file__).resolve().parents[2]
    names = {file.relative_to(src).as_posix() for file in closure(code.__file__, src)}
    assert "ember/records/errors.py" in names


def test_only_the_standard_library_is_imported():
    command = (
        "import sys; before = set(sys.modules); import ember.records.code; "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before} "
        "- sys.stdlib_module_names - {'ember'})"
    )
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
