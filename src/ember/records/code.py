"""What code a job depends on: the import closure of its script inside the library, and its hash.

The hash covers the syntax trees of the script and of every module it can reach by import
statements (at any depth, inside functions too), without comments, docstrings and layout: editing a
module changes the hash of the scripts that reach it, reformatting one changes nothing. Not seen:
modules imported by a name computed at run time. The hash of a tree differs between Python versions.

Standard library only: the Snakefile imports this on every start. Parsing is remembered by content
in `__pycache__`, so that a start reads files and parses none.
"""

import ast
import hashlib
import json
import os
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ember.records.errors import EmberError

PACKAGE = "ember"
_KEPT = 2000  # remembered files; more means old versions have piled up


class BadCode(EmberError):
    """A script or module that is not there or cannot be parsed."""


class Parsed(NamedTuple):
    """A source file: hash of its tree, and its imports as (level, module, names)."""

    digest: str
    imports: tuple[tuple[int, str, tuple[str, ...]], ...]


class Library:
    """The library under `src` as it is now: which file a module is, and what it imports."""

    def __init__(self, src: Path | str):
        self.src = Path(src)
        self.modules: dict[str, tuple[Path, tuple[str, ...]] | None] = {}

    def closure(self, script: Path | str, *modules: str) -> tuple[Path, ...]:
        """Files that `script` and `modules` (dotted names) import, directly or not, sorted by path.

        The modules themselves are among them. To a module belongs the C source beside it that has
        its name, and a package's `__init__.py` to everything inside it. Names that are no module of
        the library (attributes, other packages) are left out.
        """
        files = {file for file, _ in self.reached(Path(script), *modules).values()}
        # Compiled code lies beside the module of its name.
        return tuple(
            sorted(files | {c for file in files if (c := file.with_suffix(".c")).is_file()})
        )

    def code_hash(self, script: Path | str, *modules: str) -> str:
        """Hash of a script, of modules and of what they import, wherever the checkout stands."""
        script = Path(script)
        digest = hashlib.sha256(f"{script.name}:{_parse(script, self.src).digest}\n".encode())
        for file in self.closure(script, *modules):
            name = file.relative_to(self.src).as_posix()
            digest.update(f"{name}:{_parse(file, self.src).digest}\n".encode())
        _remember(self.src)
        return digest.hexdigest()[:32]

    def reached(self, script: Path, *modules: str) -> dict[str, tuple[Path, tuple[str, ...]]]:
        """Modules reached from the script and the modules, with their files and imports."""
        for module in modules:
            if _file(module, self.src) is None:
                raise BadCode(f"{module} is no module of the library\nname one that is there")
        seen: dict[str, tuple | None] = {}
        waiting = [*self.imported(script, ""), *(p for m in modules for p in _and_parents(m))]
        while waiting:
            module = waiting.pop()
            if module not in seen:
                seen[module] = self.module(module)
                waiting += seen[module][1] if seen[module] else ()
        return {module: found for module, found in seen.items() if found}

    def module(self, name: str) -> tuple[Path, tuple[str, ...]] | None:
        if name not in self.modules:
            file = _file(name, self.src)
            self.modules[name] = file and (file, self.imported(file, name))
        return self.modules[name]

    def imported(self, file: Path, module: str) -> tuple[str, ...]:
        """Full names that a file may import from the library, with the packages around them."""
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        found = []
        for level, base, names in _parse(file, self.src).imports:
            if level:
                parts = package.split(".")[: len(package.split(".")) - level + 1] if package else []
                base = ".".join([*parts, base] if base else parts)
            if base.split(".")[0] != PACKAGE:
                continue
            found += _and_parents(base)
            found += [f"{base}.{name}" for name in names]
        return tuple(dict.fromkeys(found))


def closure(script: Path | str, src: Path | str, *modules: str) -> tuple[Path, ...]:
    """`Library.closure` of the library as it is at this moment."""
    return Library(src).closure(script, *modules)


def code_hash(script: Path | str, src: Path | str, *modules: str) -> str:
    """`Library.code_hash` of the library as it is at this moment."""
    return Library(src).code_hash(script, *modules)


def _and_parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


def _file(module: str, src: Path) -> Path | None:
    # Plain strings: this is asked thousands of times at every start of the workflow.
    path = os.path.join(src, *module.split("."))
    for candidate in (os.path.join(path, "__init__.py"), f"{path}.py"):
        if os.path.isfile(candidate):
            return Path(candidate)
    return None


# Parsing, remembered by content


def _parse(file: Path, src: Path) -> Parsed:
    try:
        stat = file.stat()
    except OSError as error:
        raise BadCode(
            f"{file} cannot be read: {error.strerror}\nrestore it, or take it out of the rule"
        ) from None
    return _parse_once(file, src, stat.st_mtime_ns, stat.st_size)


@cache
def _parse_once(file: Path, src: Path, mtime_ns: int, size: int) -> Parsed:
    source = file.read_bytes()
    content = hashlib.sha256(source).hexdigest()
    memory = _memory(src)
    if content not in memory.known:
        compiled = file.suffix == ".c"  # no tree: its comments count too
        memory.known[content] = (
            Parsed(content[:32], ()) if compiled else _parse_source(file, source)
        )
        memory.new = True
    memory.used.add(content)
    return memory.known[content]


def _parse_source(file: Path, source: bytes) -> Parsed:
    try:
        tree = ast.parse(source, filename=str(file))
    except (SyntaxError, ValueError) as error:
        place = f"line {error.lineno}: {error.msg}" if isinstance(error, SyntaxError) else error
        raise BadCode(f"{file}, {place}\nfix the syntax: no job can run this file") from None
    imports = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [(0, alias.name, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = tuple(alias.name for alias in node.names if alias.name != "*")
            imports.append((node.level, node.module or "", names))
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            _drop_docstring(node)
    digest = hashlib.sha256(ast.dump(tree).encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return Parsed(digest, tuple(dict.fromkeys(imports)))


def _drop_docstring(node) -> None:
    first = node.body[0] if node.body else None
    if (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    ):
        del node.body[0]


class _Memory:
    def __init__(self, file: Path):
        self.file = file
        self.new = False
        self.used: set[str] = set()
        self.known: dict[str, Parsed] = {}
        try:
            data = json.loads(file.read_text())
            for content, (digest, imports) in data.items():
                rows = tuple((level, base, tuple(names)) for level, base, names in imports)
                self.known[content] = Parsed(digest, rows)
        except (OSError, ValueError, TypeError, AttributeError):
            self.known = {}  # not there yet, or damaged: parse again


@cache
def _memory(src: Path) -> _Memory:
    return _Memory(src / PACKAGE / "__pycache__" / f"code.{sys.implementation.cache_tag}.json")


def _remember(src: Path) -> None:
    memory = _memory(src)
    if not memory.new:
        return
    known = memory.known
    if len(known) > _KEPT:
        known = {content: known[content] for content in memory.used}
    temporary = memory.file.with_suffix(f".{os.getpid()}.tmp")
    try:
        memory.file.parent.mkdir(exist_ok=True)
        temporary.write_text(json.dumps(known))
        os.replace(temporary, memory.file)
    except OSError:
        return  # a library that cannot be written to is parsed on every start
    memory.new = False
