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
from contextlib import suppress
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
        self._modules: dict[str, tuple[Path, tuple[str, ...]] | None] = {}
        self._parsed: dict[Path, Parsed] = {}
        self._memory = (
            self.src / PACKAGE / "__pycache__" / f"code.{sys.implementation.cache_tag}.json"
        )
        self._known = _recall(self._memory)
        self._used: set[str] = set()
        self._new = False

    def closure(self, script: Path | str, *modules: str) -> tuple[Path, ...]:
        """Files that `script` and `modules` (dotted names) import, directly or not, sorted by path.

        The modules themselves are among them. To a module belongs the C source beside it that has
        its name, and a package's `__init__.py` to everything inside it. Names that are no module of
        the library (attributes, other packages) are left out.
        """
        for module in modules:
            if _file(module, self.src) is None:
                raise BadCode(f"{module} is no module of the library\nname one that is there")
        files, seen = set(), set()
        waiting = [*self._imported(Path(script), "")]
        waiting += [parent for module in modules for parent in _and_parents(module)]
        while waiting:
            module = waiting.pop()
            if module not in seen:
                seen.add(module)
                if found := self._module(module):
                    files.add(found[0])
                    waiting += found[1]
        compiled = {source for file in files if (source := file.with_suffix(".c")).is_file()}
        return tuple(sorted(files | compiled))

    def code_hash(self, script: Path | str, *modules: str) -> str:
        """Hash of a script, of modules and of what they import, wherever the checkout stands."""
        script = Path(script)
        digest = hashlib.sha256(f"{script.name}:{self._parse(script).digest}\n".encode())
        for file in self.closure(script, *modules):
            name = file.relative_to(self.src).as_posix()
            digest.update(f"{name}:{self._parse(file).digest}\n".encode())
        self._remember()
        return digest.hexdigest()[:32]

    def job_hash(self, script: str, step: str | None = None) -> str:
        """`code_hash` of a script of the workflow, and of the module that a step stands in."""
        modules = [f"{PACKAGE}.studies.{step.rpartition('.')[0]}"] if step else []
        return self.code_hash(self.src.parent / "workflow" / "scripts" / script, *modules)

    def _module(self, name: str) -> tuple[Path, tuple[str, ...]] | None:
        """File and imports of a module; None for a name that is none."""
        if name not in self._modules:
            file = _file(name, self.src)
            self._modules[name] = file and (file, self._imported(file, name))
        return self._modules[name]

    def _imported(self, file: Path, module: str) -> tuple[str, ...]:
        """Full names that a file may import from the library, with the packages around them."""
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        found = []
        for level, base, names in self._parse(file).imports:
            if level:
                parts = package.split(".")[: len(package.split(".")) - level + 1] if package else []
                base = ".".join([*parts, base] if base else parts)
            if base.split(".")[0] == PACKAGE:
                found += [*_and_parents(base), *(f"{base}.{name}" for name in names)]
        return tuple(dict.fromkeys(found))

    def _parse(self, file: Path) -> Parsed:
        if file in self._parsed:
            return self._parsed[file]
        try:
            source = file.read_bytes()
        except OSError as error:
            raise BadCode(
                f"{file} cannot be read: {error.strerror}\nrestore it, or take it out of the rule"
            ) from None
        content = hashlib.sha256(source).hexdigest()
        if content not in self._known:
            compiled = file.suffix == ".c"  # no tree: its comments count too
            self._known[content] = (
                Parsed(content[:32], ()) if compiled else _parse_source(file, source)
            )
            self._new = True
        self._used.add(content)
        self._parsed[file] = self._known[content]
        return self._parsed[file]

    def _remember(self) -> None:
        """Keep what was parsed for the next start, where the library can be written to."""
        if not self._new:
            return
        if len(self._known) > _KEPT:
            self._known = {content: self._known[content] for content in self._used}
        temporary = self._memory.with_suffix(f".{os.getpid()}.tmp")
        with suppress(OSError):
            self._memory.parent.mkdir(exist_ok=True)
            temporary.write_text(json.dumps(self._known))
            os.replace(temporary, self._memory)
            self._new = False


def _recall(file: Path) -> dict[str, Parsed]:
    """Parsed files by the hash of their content; none where the memory is damaged or new."""
    try:
        return {
            content: Parsed(digest, tuple((at, base, tuple(names)) for at, base, names in imports))
            for content, (digest, imports) in json.loads(file.read_text()).items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


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
