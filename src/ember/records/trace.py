"""From a product back over its inputs to every table, job, code version, commit and machine.

`trace` follows the provenance inside the product, then inside each of its inputs, and compares
every input's present content with the hash that was recorded when it was read. `format_trace`
prints the tree, then what it rests on, then the files that no longer match.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ember.records.errors import BadProvenance, EmberError
from ember.records.provenance import carrier, describe_machine, digest, provenance_of
from ember.records.remedy import remake

MATCHES, CHANGED, MISSING = "matches", "changed since", "missing"


@dataclass(frozen=True)
class Node:
    """A product and what it was made from.

    state: of the present file against the recorded hash (None for the product asked about, of
    which nothing is recorded). problem: why the walk ends here, if it should not.
    """

    path: str
    state: str | None
    recorded: str | None
    provenance: dict | None
    problem: str | None = None
    inputs: tuple["Node", ...] = field(default=(), repr=False)


def trace(product: Path | str) -> Node:
    """What a product was made from, as a tree. Raises `BadProvenance` for one that does not say."""
    product = Path(product)
    if not product.exists():
        raise BadProvenance(f"{product} does not exist\nmake it with `{remake(product)}`")
    source = carrier(product)
    provenance = provenance_of(source)
    if provenance is None:
        raise BadProvenance(
            f"{product} carries no provenance: it was not made by a rule of the workflow\n"
            "ask about a table, figure or model below results/"
        )
    walk = _Walk(_root(source, provenance))
    return Node(str(source), None, None, provenance, None, walk.inputs(str(source), provenance))


def nodes(top: Node) -> Iterator[Node]:
    """Every node of the tree once per path and state, top first."""
    seen, waiting = set(), [top]
    while waiting:
        node = waiting.pop(0)
        if (node.path, node.state) not in seen:
            seen.add((node.path, node.state))
            yield node
            waiting += node.inputs


def mismatches(top: Node) -> list[Node]:
    """Inputs whose present content is not what was recorded when they were read."""
    return [node for node in nodes(top) if node.state in (CHANGED, MISSING)]


def format_trace(top: Node) -> str:
    """The tree and a summary, as text."""
    machines: dict[str, str] = {}  # short names for what is too long to print in every line
    lines = _tree(top, machines)
    lines += ["", *_summary(top, machines), "", *_verdict(top)]
    return "\n".join(lines)


class _Walk:
    """Below `root`, every product looked at once; `path` leads to where the walk is."""

    def __init__(self, root: Path):
        self.root, self.done, self.path = root, {}, []

    def inputs(self, product: str, provenance: dict) -> tuple[Node, ...]:
        self.path.append(product)
        found = tuple(self.node(recorded) for recorded in provenance.get("inputs", ()))
        self.path.pop()
        return found

    def node(self, recorded: dict) -> Node:
        path, sha256 = recorded["path"], recorded["sha256"]
        file = self.root / path
        if not file.exists():
            return Node(path, MISSING, sha256, None, "the walk ends here")
        state = MATCHES if digest(file)[0] == sha256 else CHANGED
        if path in self.path:
            return Node(path, state, sha256, None, "it names itself among its inputs")
        if path not in self.done:
            self.done[path] = self.look(path, file)
        return Node(path, state, sha256, *self.done[path])

    def look(self, path: str, file: Path) -> tuple:
        try:
            provenance = provenance_of(file)
        except EmberError as error:
            return None, str(error).splitlines()[0], ()
        if provenance is None:
            return None, "no provenance: not made by the workflow", ()
        return provenance, None, self.inputs(path, provenance)


def _root(product: Path, provenance: dict) -> Path:
    """The working directory of the workflow that made the product."""
    full = Path(os.path.abspath(product))
    for output in provenance.get("outputs", ()):
        parts = Path(output).parts
        if not Path(output).is_absolute() and full.parts[-len(parts) :] == parts:
            return Path(*full.parts[: -len(parts)])
    return Path.cwd()


# Text


def _tree(top: Node, machines: dict[str, str]) -> list[str]:
    lines, shown = [], set()

    def visit(node: Node, lead: str, branch: str) -> None:
        state = f" [{node.state}]" if node.state else ""
        if node.path in shown:
            lines.append(f"{lead}{branch}{node.path}{state} (above)")
            return
        shown.add(node.path)
        lines.append(f"{lead}{branch}{node.path}{state}: {_job(node, machines)}")
        below = lead + {"": "", "├─ ": "│  ", "└─ ": "   "}[branch]
        for number, child in enumerate(node.inputs, 1):
            visit(child, below, "└─ " if number == len(node.inputs) else "├─ ")

    visit(top, "", "")
    return lines


def _job(node: Node, machines: dict[str, str]) -> str:
    made = node.provenance
    if made is None:
        return node.problem or "no provenance"
    machine = describe_machine(made.get("hardware") or {}, details=True)
    parts = [
        f"rule {made.get('rule')}",
        f"{made.get('started')}",
        f"{made.get('seconds')} s",
        f"code {_short(made.get('code'))}",
        _source(made),
        machines.setdefault(machine, f"machine {len(machines) + 1}"),
    ]
    return ", ".join(parts)


def _source(made: dict) -> str:
    source = made.get("source") or {}
    if source.get("commit"):
        return f"commit {_short(source['commit'])}" + (" (dirty)" if source.get("dirty") else "")
    return f"no git, tree {_short(source.get('tree_sha256'))}"


def _short(sha: str | None) -> str:
    return sha[:12] if sha else "unknown"


def _summary(top: Node, machines: dict[str, str]) -> list[str]:
    made = [node.provenance for node in nodes(top) if node.provenance]
    tables = sorted({node.path for node in nodes(top) if node.path.endswith(".parquet")})
    lines = [f"{len(tables)} tables, {len({m.get('rule') for m in made})} rules led to {top.path}"]
    lines += [f"tables: {', '.join(tables)}"] if tables else []
    lines += [f"scale: {_joined((m.get('config') or {}).get('scale') for m in made)}"]
    lines += [f"source: {_joined(map(_source, made))}"]
    lines += [f"ember: {_joined(m.get('ember') for m in made)}"]
    lines += [f"versions: {text}" for text in dict.fromkeys(map(_versions, made))]
    lines += [f"{name}: {text}" for text, name in machines.items()]
    return lines


def _versions(made: dict) -> str:
    return ", ".join(f"{name} {text}" for name, text in (made.get("versions") or {}).items())


def _joined(values) -> str:
    return "; ".join(dict.fromkeys(str(value) for value in values if value)) or "unknown"


def _verdict(top: Node) -> list[str]:
    wrong = mismatches(top)
    lost = [node for node in nodes(top) if node.problem and node.state != MISSING]
    lines = [f"{node.path}: {node.state} (recorded {_short(node.recorded)})" for node in wrong]
    if lines:
        lines.insert(0, f"{len(wrong)} files are not what {top.path} was made from:")
        lines.append(f"to make it from what is there now: `{remake(top.path)}`")
    lines += [f"{node.path}: {node.problem}" for node in lost]
    return lines or ["every file above is what was recorded when it was read"]
