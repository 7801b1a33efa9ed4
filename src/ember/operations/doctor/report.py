"""What the doctor found, as plain text and as JSON data.

Paths and commands are for the folder that holds `results`.
"""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

BROKEN, STALE, FOREIGN, LOCK = "broken", "stale", "foreign", "lock"
KINDS = (LOCK, BROKEN, FOREIGN, STALE)


@dataclass(frozen=True)
class Finding:
    """Something to repair. Paths are relative to the folder that holds `results`.

    command: repairs it, alone. scale: at which the product is made again (None: it is not).
    behind: products that stand and are made again with it.
    """

    kind: str
    paths: tuple[str, ...]
    why: str
    command: str
    scale: str | None = None
    behind: tuple[str, ...] = ()


@dataclass(frozen=True)
class Unchecked:
    """What could not be checked, and why."""

    paths: tuple[str, ...]
    why: str


@dataclass
class Report:
    """The state of a results folder. commands: combined, in the order to run them."""

    folder: str
    findings: list[Finding] = field(default_factory=list)
    unchecked: list[Unchecked] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)

    @property
    def well(self) -> bool:
        """Nothing to repair, and nothing that could not be checked."""
        return not self.findings and not self.unchecked

    def to_dict(self) -> dict:
        """As JSON data."""
        return {"well": self.well} | asdict(self)


def remove(paths: Sequence[str]) -> str:
    """A command that deletes."""
    return shlex.join(["rm", "-r", *sorted(paths)])


def set_aside(paths: Sequence[str]) -> str:
    """A command that moves files whose origin nobody knows out of the results, and keeps them."""
    moves = []
    for folder in sorted({str(Path(path).parent) for path in paths}):
        target = f"set-aside/{folder}"
        files = sorted(path for path in paths if str(Path(path).parent) == folder)
        moves.append(shlex.join(["mkdir", "-p", target]))
        moves.append(shlex.join(["mv", "-n", *files, target]))
    return " && ".join(moves)


def as_text(report: Report) -> str:
    """One block per finding, sorted; then what was not checked, notes, commands and a verdict."""
    blocks = [_block(finding) for finding in report.findings]
    lists = {
        "not checked:": [f"{folded(item.paths)}: {item.why}" for item in report.unchecked],
        "notes:": report.notes,
        f"to repair what was found, in {report.folder}:": report.commands,
    }
    for head, lines in lists.items():
        blocks += ["\n".join([head, *(f"  {line}" for line in lines)])] if lines else []
    return "\n\n".join([*blocks, _verdict(report)])


def _block(finding: Finding) -> str:
    lines = [f"{finding.kind:8} {folded(finding.paths)}", f"  why:   {finding.why}"]
    if finding.behind:
        # Final products first: those are what a reader looks for.
        first = sorted(finding.behind, key=lambda path: (path.count("/"), path))[:3]
        rest = len(finding.behind) - len(first)
        more = f", … and {rest} more" if rest else ""
        lines.append(
            f"  also:  {len(finding.behind)} products made from it: {', '.join(first)}{more}"
        )
    return "\n".join([*lines, f"  fix:   {finding.command}"])


def folded(paths: Sequence[str]) -> str:
    """Paths that differ only in their ending as one: results/p1_policies.{csv,md}."""
    stems: dict[str, list[str]] = {}
    for path in sorted(paths):
        name = Path(path).name
        ending = name.partition(".")[2] if not name.startswith(".") else ""
        stems.setdefault(path.removesuffix(f".{ending}"), []).append(ending)
    return ", ".join(
        f"{stem}.{{{','.join(endings)}}}"
        if len(endings) > 1
        else f"{stem}.{endings[0]}".rstrip(".")
        for stem, endings in stems.items()
    )


def _verdict(report: Report) -> str:
    if report.well:
        return f"all is well in {report.folder}/results"
    counts = {kind: sum(f.kind == kind for f in report.findings) for kind in KINDS}
    said = [f"{count} {kind}" for kind, count in counts.items() if count]
    said += [f"{len(report.unchecked)} not checked"] if report.unchecked else []
    return f"{report.folder}/results: {', '.join(said)}"
