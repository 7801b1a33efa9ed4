"""What the doctor found, as plain text and as JSON data.

Paths and commands are for the folder that holds `results`.
"""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

BROKEN, STALE, FOREIGN, LOCK = "broken", "stale", "foreign", "lock"
KINDS = (LOCK, BROKEN, FOREIGN, STALE)
SET_ASIDE = "set-aside"


@dataclass(frozen=True)
class Call:
    """How snakemake is called here: profile, further --config words, and where from."""

    profile: str = "local"
    config: tuple[str, ...] = ()
    place: tuple[str, ...] = ()  # --snakefile and --directory, where the folder is no checkout

    def command(self, scale: str | None, targets: Sequence[str] = (), *options: str) -> str:
        """A command line: targets first, since --config takes every word that follows it."""
        scaled = [f"scale={scale}"] if scale else []
        words = ["snakemake", *targets, *options, *self.place, "--profile", self.profile]
        words += ["--config", *scaled, *self.config] if scaled or self.config else []
        return shlex.join(words)


@dataclass(frozen=True)
class Finding:
    """Something to mend. Paths are relative to the folder that holds `results`.

    command: mends it, alone. scale: at which the product is made again (None: it is not).
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
        """Nothing to mend, and nothing that could not be checked."""
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
        target = (Path(SET_ASIDE) / folder).as_posix()
        files = sorted(path for path in paths if str(Path(path).parent) == folder)
        moves.append(shlex.join(["mkdir", "-p", target]))
        moves.append(shlex.join(["mv", "-n", *files, target]))
    return " && ".join(moves)


def as_text(report: Report) -> str:
    """One block per finding, sorted; then what was not checked, notes, commands and a verdict."""
    blocks = [_block(finding) for finding in report.findings]
    if report.unchecked:
        lines = [f"  {folded(item.paths)}: {item.why}" for item in report.unchecked]
        blocks.append("\n".join(["not checked:", *lines]))
    if report.notes:
        blocks.append("\n".join(["notes:", *(f"  {note}" for note in report.notes)]))
    if report.commands:
        head = f"to mend what was found, in {report.folder}:"
        blocks.append("\n".join([head, *(f"  {command}" for command in report.commands)]))
    return "\n\n".join([*blocks, _verdict(report)])


def _block(finding: Finding) -> str:
    lines = [f"{finding.kind:8} {folded(finding.paths)}", f"  why:   {finding.why}"]
    if finding.behind:
        more = f"{len(finding.behind)} products that rest on it: {_some(finding.behind)}"
        lines.append(f"  also:  {more}")
    return "\n".join([*lines, f"  mend:  {finding.command}"])


def _some(paths: Sequence[str], shown: int = 3) -> str:
    # Deep ones last in the alphabet, final products first: those are what a reader looks for.
    finals = sorted(paths, key=lambda path: (path.count("/"), path))
    rest = f", … and {len(finals) - shown} more" if len(finals) > shown else ""
    return ", ".join(finals[:shown]) + rest


def folded(paths: Sequence[str]) -> str:
    """Paths that differ only in their ending as one: results/p1_policies.{csv,md}."""
    stems: dict[str, list[str]] = {}
    for path in sorted(paths):
        name = Path(path).name
        ending = name.partition(".")[2] if not name.startswith(".") else ""
        stem = path.removesuffix(f".{ending}") if ending else path
        stems.setdefault(stem, []).append(ending)
    return ", ".join(
        f"{stem}.{{{','.join(endings)}}}"
        if len(endings) > 1
        else stem + (f".{endings[0]}" if endings[0] else "")
        for stem, endings in stems.items()
    )


def _verdict(report: Report) -> str:
    if report.well:
        return f"all is well in {report.folder}/results"
    counts = {kind: sum(f.kind == kind for f in report.findings) for kind in KINDS}
    said = [f"{count} {kind}" for kind, count in counts.items() if count]
    said += [f"{len(report.unchecked)} not checked"] if report.unchecked else []
    return f"{report.folder}/results: {', '.join(said)}"
