"""`ember doctor`: what in a results folder is broken, stale or foreign, and how to fix it.

Snakemake says which files there should be and what it would make again; the record of every job
says what it read and wrote. Both are held against what is there: first whether each product is what
its job wrote, then whether it was made by this code, with these parameters, from these inputs.
Nothing is changed. What cannot be checked is said, never passed over.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from ember.measure.overhead import read_record
from ember.operations.doctor import bookkeeping
from ember.operations.doctor.report import (
    BROKEN,
    FOREIGN,
    KINDS,
    LOCK,
    STALE,
    Finding,
    Report,
    Unchecked,
    folded,
    remove,
    set_aside,
)
from ember.operations.plan import (
    BadPlan,
    PlannedJob,
    Settings,
    planned_jobs,
    profile_folder,
    profile_scale,
)
from ember.records import remedy
from ember.records.atomic import writer
from ember.records.code import BadCode, Library
from ember.records.errors import EmberError
from ember.records.provenance import (
    SIDECAR,
    digest,
    file_hashes,
    provenance_of,
    read_sidecar,
    size_bytes,
    source_root,
    tree_sha256,
)
from ember.records.tables import verify_table

_LARGE = 200e6  # bytes: reading more is worth a line of progress
_FILES = (".parquet", ".csv", ".md", ".tex", ".png", ".pdf", ".json", ".jsonl", ".txt", ".gguf")
_KEPT = {"results/README.md"}
_FOLLOWS = "Input files updated by another job"


class NotResults(EmberError):
    """Not a results folder of this workflow."""


@dataclass(eq=False)
class _Case:
    """A planned job some of whose products stand, its record, and what is wrong with them."""

    scale: str
    job: PlannedJob
    standing: list[str]
    record: dict
    faults: dict[str, dict[str, str]] = field(default_factory=dict)  # kind: {path: why}
    reason: str | None = None  # Snakemake's, where it would run the job again by itself

    @property
    def kind(self) -> str | None:
        return next((kind for kind in KINDS if kind in self.faults), None)

    def add(self, kind: str, paths: Iterable[str], why: str) -> None:
        known = self.faults.setdefault(kind, {})
        for path in paths:
            known.setdefault(path, why)


def examine(
    results: Path,
    settings: Settings | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Report:
    """Examine `results`, at every scale found in it or at the one that `settings` name.

    progress: takes a line when something takes long. Raises `NotResults` for another folder,
    `BadPlan` where the workflow cannot be planned at any scale.
    """
    results = Path(results)
    _check_place(results)
    if links := _dead_links(results.resolve()):
        # Snakemake plans nothing while a product is a link to nothing: that comes first.
        found = [Finding(BROKEN, (p,), "it is a link to nothing", remove([p])) for p in links]
        rest = Unchecked(("results",), "Snakemake cannot plan with these links: then ask again")
        folder = os.path.relpath(results.resolve().parent)
        return Report(folder, found, [rest], commands=[remove(links)])
    return _Examination(results.resolve(), settings or Settings(), progress).report()


def _check_place(results: Path) -> None:
    if not results.is_dir():
        what = "is a file" if results.exists() else "does not exist"
        raise NotResults(
            f"{results} {what}\ngive the workflow's results folder: ember doctor results"
        )
    folder, root = results.resolve().parent, source_root()
    if results.resolve().name != "results":
        raise NotResults(
            f"{results} is not the results folder of a workflow: that one is called results\n"
            f"give it: ember doctor {results / 'results'}"
        )
    own = (folder / "Snakefile").is_file() and (folder / "src" / "ember").is_dir()
    if own and folder != root and tree_sha256(folder) != tree_sha256(root):
        raise NotResults(
            f"{folder} holds other code than this ember, which runs from {root}\n"
            f"run its own: PYTHONPATH={folder / 'src'} ember doctor {results}"
        )


def _dead_links(results: Path) -> list[str]:
    """Links to nothing, outside of directory products."""
    found = (path for path in results.rglob("*") if path.is_symlink() and not path.exists())
    return sorted(
        path.relative_to(results.parent).as_posix()
        for path in found
        if not (path.parent / SIDECAR).is_file()
    )


class _Examination:
    def __init__(self, results: Path, settings: Settings, progress):
        self.folder, self.root = results.parent, source_root()
        self._library = Library(self.root / "src")
        self.settings, self.progress = settings, progress
        self.known_scales = sorted(f.stem for f in (self.root / "config/scale").glob("*.yaml"))
        self.files = _walk(results, self.known_scales)
        self.found = Report(os.path.relpath(self.folder))
        self.provenance = cache(self._read_provenance)
        scales = [w.partition("=")[2] for w in settings.config if w.startswith("scale=")]
        self.asked = scales[-1] if scales else None
        self.default = self.asked or profile_scale(settings.profile)
        self.plans = self._plans()
        self.planned = _KEPT.union(*self.plans.values())
        self.cases = self._cases()

    def _read_provenance(self, path: str) -> dict:
        """What a product says of itself; nothing if it cannot be read."""
        try:
            return provenance_of(self.folder / path) or {}
        except (EmberError, OSError, ValueError):
            return {}

    def _scale_of(self, path: str) -> str | None:
        """The scale that a path names, or that a final product recorded."""
        if path.count("/") > 1:
            return path.split("/")[1]
        return (self.provenance(path).get("config") or {}).get("scale")

    # The plans, and which scale a product is judged at

    def _plans(self) -> dict[str, dict[str, PlannedJob]]:
        """Jobs by output, for every scale. One that cannot be planned is said."""
        found = sorted({self._scale_of(path) for path in self.files} & {*self.known_scales})
        scales = [self.asked] if self.asked else found or [self.default or "tiny"]
        plans, refused = {}, []
        self.progress(f"planning scale {', '.join(scales)}")
        with ThreadPoolExecutor() as pool:
            for scale, answer in zip(scales, pool.map(self._plan, scales), strict=True):
                if isinstance(answer, BadPlan):
                    refused.append(answer)
                    self._unchecked([f"results/{scale}"], f"not planned: {_last(answer)}")
                else:
                    plans[scale] = {path: job for job in answer for path in job.outputs}
        if not plans:
            raise refused[0]
        for scale, plan in plans.items():  # what is not part of `all`, but made if asked for
            claims = [
                path
                for path in self.files
                if path not in plan and self._says_made(path) and self._scale_of(path) == scale
            ]
            answer = self._plan(scale, claims) if claims else []
            if isinstance(answer, BadPlan):
                answers = [self._plan(scale, [path]) for path in claims]
                answer = [job for jobs in answers if not isinstance(jobs, BadPlan) for job in jobs]
            plan.update({made: job for job in answer for made in job.outputs})
        return plans

    def _says_made(self, path: str) -> bool:
        """Whether a file says that a rule made it there."""
        return path in (self.provenance(path).get("outputs") or ())

    def _plan(
        self, scale: str, targets: Sequence[str] = ("all",), every: bool = True
    ) -> list[PlannedJob] | BadPlan:
        try:
            return planned_jobs(targets, self._at(scale), every=every, folder=self.folder)
        except BadPlan as error:
            return error

    def _at(self, scale: str | None) -> Settings:
        words = tuple(w for w in self.settings.config if not w.startswith("scale="))
        scaled = (f"scale={scale}",) if scale else ()
        return Settings(self.settings.profile, scaled + words, self.settings.configfiles)

    def _cases(self) -> list[_Case]:
        """Jobs with standing products; final ones count at the scale of their last run."""
        jobs = {(s, job.name): job for s, plan in self.plans.items() for job in plan.values()}
        standing = {key: self._standing(job) for key, job in jobs.items()}
        last = {
            key[1]: self._last_made(jobs[key])
            for key, paths in standing.items()
            if paths and _is_final(paths[0])
        }
        made_at = {name: scale for name, (scale, _) in last.items()}
        self._unmix(last)
        return [
            _Case(scale, jobs[scale, name], paths, self._record(made_at.get(name, scale), name))
            for (scale, name), paths in standing.items()
            if paths and last.get(name, (scale,))[0] == scale
        ]

    def _standing(self, job: PlannedJob) -> list[str]:
        return [path for path in job.outputs if os.path.lexists(self.folder / path)]

    def _record(self, scale: str, name: str) -> dict:
        return read_record(scale, name, self.folder)

    def _last_made(self, job: PlannedJob) -> tuple[str, str]:
        """Scale and start of the last run of a job with final products."""
        started = {s: self._record(s, job.name).get("started") or "" for s in self.known_scales}
        said = next(filter(None, map(self._scale_of, job.outputs)), next(iter(self.plans)))
        last = max(started, key=lambda scale: (started[scale], scale == said))
        return last, started[last]

    def _unmix(self, last: dict[str, tuple[str, str]]) -> None:
        """Of two final products, one made from the other, both are judged at the newer's scale."""
        mixed = True
        while mixed:
            mixed = False
            for plan in self.plans.values():
                for job in plan.values():
                    makers = {plan[path].name for path in job.inputs if path in plan}
                    for other in makers & last.keys():
                        if job.name in last and last[other] != last[job.name]:
                            newer = max(last[other], last[job.name], key=lambda at: at[1])
                            last[other] = last[job.name] = newer
                            mixed = True

    # The examination

    def report(self) -> Report:
        self._check_known()
        self._look_at_processes()
        for case in self.cases:
            self._check_products(case)
        kinds = (BROKEN, FOREIGN)
        faulty = {p for case in self.cases for kind in kinds for p in case.faults.get(kind, ())}
        for case in list(self.cases):
            self._check_origin(case, faulty)
        for scale in self.plans:
            self._ask_snakemake(scale)
        self._check_params()
        self._collect()
        self._check_strangers()
        self._note()
        self.found.findings.sort(key=lambda f: (KINDS.index(f.kind), f.paths))
        return self.found

    def _unchecked(self, paths: Sequence[str], why: str) -> None:
        self.found.unchecked.append(Unchecked(tuple(sorted(paths)), why))

    def _find(self, kind: str, paths: Sequence[str], why: str, command: str) -> None:
        self.found.findings.append(Finding(kind, tuple(paths), why, command))

    def _check_known(self) -> None:
        """A folder called results may be anyone's."""
        ours = any(path in self.planned or self.provenance(path) for path in self.files)
        if self.files and not ours and not (self.folder / ".snakemake").is_dir():
            raise NotResults(
                f"{self.found.folder}/results holds {len(self.files)} files and none that this "
                "workflow makes\ngive the folder in which the workflow has run"
            )

    def _look_at_processes(self) -> None:
        if running := bookkeeping.workflows(self.folder):
            numbers = ", ".join(map(str, running))
            why = f"a workflow is running here (process {numbers}): ask again when it has ended"
            self._unchecked(["results"], why)
        elif locked := bookkeeping.locks(self.folder):
            why = (
                "a workflow was killed and left its lock; none is running on this machine (if one "
                "is on another machine, or its jobs are still in a queue, let it end)"
            )
            self._find(LOCK, locked, why, self._command(self.asked, ["--unlock"]))

    def _check_products(self, case: _Case) -> None:
        """What stands against the digests in the job's record."""
        missing = [path for path in case.job.outputs if path not in case.standing]
        others = folded(case.standing)
        if missing:
            case.add(BROKEN, missing, f"missing, though {others} of the same job stands")
        recorded = {entry["path"]: entry["sha256"] for entry in case.record.get("products") or ()}
        for path in case.standing:
            if self._digest(path) != recorded.get(path):
                kind, why = self._what_it_is(path, case.job)
                if path in recorded or kind != BROKEN:
                    case.add(kind, [path], why)
            elif bookkeeping.incomplete(self.folder, path):
                case.add(BROKEN, [path], "Snakemake marked it as incomplete: its job was killed")
        unknown = [path for path in case.standing if path not in recorded]
        if unknown and not case.faults:
            self._unchecked(unknown, "its job left no record of what it wrote")

    def _digest(self, path: str) -> str:
        size = size_bytes(self.folder / path)
        if size > _LARGE:
            self.progress(f"reading {path} ({size / 1e9:.1f} GB)")
        return digest(self.folder / path)[0]

    def _what_it_is(self, path: str, job: PlannedJob) -> tuple[str, str]:
        """Kind and cause of a product that is not what its job wrote."""
        file = self.folder / path
        if file.is_dir() == path.endswith(_FILES):
            kinds = ("directory", "file") if file.is_dir() else ("file", "directory")
            return BROKEN, f"it is a {kinds[0]}, not a {kinds[1]}"
        try:
            made = provenance_of(file)
            if path.endswith(".parquet"):
                verify_table(file)
        except EmberError as error:
            # The second line of the message is a remedy; the command to use comes with the finding.
            cause = str(error).splitlines()[0]
            return BROKEN, cause.partition(f"{file.name} ")[2] or cause
        if made is None and path.endswith((".parquet", ".png", ".pdf")):
            return FOREIGN, "it carries no provenance: no rule of the workflow wrote it"
        if made is not None and (
            made.get("rule") != job.rule or path not in (made.get("outputs") or ())
        ):
            return FOREIGN, _other_job(made)
        return BROKEN, _differing(file) or "it is not what its job wrote"

    def _check_origin(self, case: _Case, faulty: set[str]) -> None:
        """The job's record against the code, the plan and the inputs that there are now.

        faulty: what is not as its job wrote it, which is said already.
        """
        record, standing = case.record, case.standing
        params = record.get("params") or {}
        if record and record.get("code") != self._code(params.get("script"), params.get("step")):
            case.add(STALE, standing, f"made by other code ({str(record.get('code'))[:8]})")
        recorded = {entry["path"]: entry["sha256"] for entry in record.get("inputs") or ()}
        if record and set(recorded) != set(case.job.inputs):
            only = folded(sorted(set(recorded) ^ set(case.job.inputs)))
            case.add(STALE, standing, f"made from other inputs than the plan's: {only}")
        changed = [
            path
            for path, sha256 in recorded.items()
            if path not in faulty and (self.folder / path).exists() and self._digest(path) != sha256
        ]
        if changed:
            case.add(STALE, standing, f"not what it was made from any more: {folded(changed)}")
        for path in case.job.inputs:  # gone, and Snakemake does not make them again
            job = self.plans[case.scale].get(path)
            if job and not self._standing(job):
                gone = self._gone(case.scale, job)
                why = f"missing, though {folded(standing)} was made from it and stands"
                gone.add(STALE, [path], why)

    @cache  # noqa: B019 (one examination a process)
    def _code(self, script: str | None, step: str | None) -> str | None:
        """The code hash of a rule's script and step as they are now; None where there is none."""
        try:
            return self._library.job_hash(str(script), step)
        except BadCode:
            return None

    def _gone(self, scale: str, job: PlannedJob) -> _Case:
        for case in self.cases:
            if (case.scale, case.job.name) == (scale, job.name):
                return case
        self.cases.append(_Case(scale, job, [], {}))
        return self.cases[-1]

    def _ask_snakemake(self, scale: str) -> None:
        """Which standing products Snakemake would make again, and why."""
        cases = {case.job.name: case for case in self.cases if case.scale == scale}
        targets = sorted(path for case in cases.values() for path in case.standing)
        answer = self._plan(scale, targets, every=False) if targets else []
        if isinstance(answer, BadPlan):
            self._unchecked(targets, f"Snakemake's own reasons are unknown: {_last(answer)}")
            return
        for job in answer:
            if case := cases.get(job.name):
                case.reason = job.reason
                parts = [part.strip() for part in job.reason.split("; ")]
                own = [part for part in parts if part and not part.startswith(_FOLLOWS)]
                if not own or not case.standing or case.faults:
                    continue
                text = "; ".join(own)
                brief = text if len(text) <= 300 else f"{text[:300]} …"
                case.add(STALE, case.standing, f"Snakemake would make it again: {brief}")

    def _check_params(self) -> None:
        """The parameters on record are those of the job that Snakemake remembers."""
        lost = []
        for case in self.cases:
            named = [*(case.record.get("params") or {}).values(), case.record.get("code")]
            for path in case.standing if not case.faults and not case.reason else ():
                params = bookkeeping.recorded_params(self.folder, path)
                if params is None:
                    lost.append(path)
                elif case.record and not all(value in named for value in params):
                    why = "made with other parameters than the job that Snakemake remembers"
                    case.add(FOREIGN, [path], why)
        if lost:
            why = (
                "Snakemake holds no record of the jobs (.snakemake/metadata): their parameters "
                "were not compared with the configuration"
            )
            self._unchecked(lost, why)

    # What to do about it

    def _collect(self) -> None:
        faulty = [case for case in self.cases if case.kind]
        for case in faulty:
            noted = case.faults[case.kind]
            why = "; ".join(dict.fromkeys(noted.values()))
            rest = [path for b in self._closure([case]) if b is not case for path in b.standing]
            before = self._closure([case], backwards=True)
            command = self._fix([one for one in faulty if one in before])
            found = Finding(case.kind, tuple(noted), why, command, case.scale, tuple(sorted(rest)))
            self.found.findings.append(found)
        for scale in self.plans:
            here = [case for case in faulty if case.scale == scale]
            self.found.commands += [self._fix(here)] if here else []

    def _closure(self, start: Sequence[_Case], backwards: bool = False) -> list[_Case]:
        """These jobs and all that rest on them, or on which they rest, of the same scale."""
        found, waiting = list(start), list(start)
        while waiting:
            here = waiting.pop()
            for other in self.cases:
                first, second = (other, here) if backwards else (here, other)
                linked = set(first.job.outputs) & set(second.job.inputs)
                if linked and other.scale == here.scale and other not in found:
                    found.append(other)
                    waiting.append(other)
        return found

    def _fix(self, cases: Sequence[_Case]) -> str:
        """One command that makes the products of these jobs again, and all that rest on them."""
        behind = self._closure(cases)
        used = {path for case in behind for path in case.job.inputs}
        tops = {c.job.outputs[0] for c in behind if not used.intersection(c.job.outputs)}
        gone = {path for c in cases for path in c.job.outputs if path not in c.standing}
        # Snakemake does not see by itself that these have to run again.
        unseen = sorted(c.job.outputs[0] for c in cases if c.standing and c.reason is None)
        options = ["--forcerun", *unseen] if unseen else []
        command = self._command(cases[0].scale, [*sorted(tops | gone), *options])
        in_the_way = [
            path
            for case in cases
            for path in case.standing
            if (self.folder / path).is_dir() == path.endswith(_FILES)
        ]
        return f"{remove(in_the_way)} && {command}" if in_the_way else command

    def _command(self, scale: str | None, words: Sequence[str]) -> str:
        """A Snakemake command for the folder that holds the results."""
        at, here = self._at(scale), self.folder == Path.cwd()
        profile, place = at.profile, []
        if not (self.folder / "Snakefile").is_file():
            profile = str(profile_folder(profile))
            place = ["--snakefile", str(self.root / "Snakefile"), "--directory", str(self.folder)]
        files = at.configfiles if here else [str(Path(file).resolve()) for file in at.configfiles]
        options = Settings(profile, at.config, tuple(files)).words()
        return remedy.command(words, [*place, *options])

    # What no rule makes

    def _check_strangers(self) -> None:
        jobs = [(scale, job) for scale, plan in self.plans.items() for job in plan.values()]
        states = {
            f"results/{scale}/states/{job.wildcards['model']}.pt": job.outputs[0]
            for scale, job in jobs
            if "model" in job.wildcards
        }
        strangers: dict[str, list[str]] = {}
        for path in self.files:
            parents = [parent.as_posix() for parent in Path(path).parents]
            if self.planned.intersection([path, *parents]):
                continue
            if path in states:
                self._check_state(path, states[path])
            elif left := _left_over(Path(path).name):
                self._check_temporary(path, *left)
            elif not self._is_elsewhere(path):
                strangers.setdefault(self._why_foreign(path), []).append(path)
        for why, paths in strangers.items():
            if why.startswith("rule "):  # someone's work: not for us to move
                self._unchecked(paths, why)
            else:
                self._find(FOREIGN, paths, why, set_aside(paths))
        loose = [f for f in self.found.findings if f.scale is None]
        first = [f.command for f in loose if f.kind == LOCK]
        for verb, make in (("rm ", remove), ("mkdir ", set_aside)):
            paths = [path for f in loose if f.command.startswith(verb) for path in f.paths]
            first += [make(paths)] if paths else []
        self.found.commands[:0] = first

    def _is_elsewhere(self, path: str) -> bool:
        """Of a scale that is not examined, about a job, or written by a command of ember."""
        benchmark = path.split("/")[2:-1] == ["benchmarks"]
        if benchmark or str(self.provenance(path).get("rule")).startswith("ember "):
            return True
        return self._scale_of(path) in set(self.known_scales) - self.plans.keys()

    def _check_state(self, path: str, model: str) -> None:
        if (self.folder / model).exists():
            why = f"the state of a training that is over: {model} stands"
            self._find(FOREIGN, [path], why, remove([path]))
        else:
            self.found.notes.append(f"{path}: a training was stopped; making {model} resumes it")

    def _check_temporary(self, path: str, process: int, alive: bool | None) -> None:
        if alive:
            why = f"a job is writing it (process {process}): ask again when it has ended"
            self._unchecked([path], why)
            return
        where = "" if alive is False else " on another machine (see that it does not run)"
        self._find(FOREIGN, [path], f"left over by a killed job{where}", remove([path]))

    def _why_foreign(self, path: str) -> str:
        if path.count("/") == 1 and (self.folder / path).is_dir():
            return f"no scale is called {Path(path).name}"
        made = self.provenance(path)
        if not made:
            return "no rule makes it, and it says nothing of where it comes from"
        if self._says_made(path):
            return (
                f"rule {made.get('rule')} made it, and with this configuration no rule does: give "
                "the --config and --configfile of its run, or delete it"
            )
        return _other_job(made)

    def _note(self) -> None:
        notes = self.found.notes
        stands = [(case.scale, path) for case in self.cases for path in case.standing]
        count = Counter(scale for scale, _ in stands)
        for scale, plan in self.plans.items():
            notes.append(f"scale {scale}: {count[scale]} of {len(plan)} products stand")
        finals = {scale for scale, path in stands if _is_final(path)}
        for scale in sorted(finals - {self.default}):
            command = self._command(self.default, ["all"])
            notes.append(
                f"final products stand at scale {scale}; to have them at {self.default}: {command}"
            )
        others = [p for p in self.files if self.asked and self._scale_of(p) in self.known_scales]
        if left := sum(self._scale_of(path) != self.asked for path in others):
            notes.append(f"not examined, of other scales than {self.asked}: {left} files")
        if any("Params have changed" in finding.why for finding in self.found.findings):
            notes.append(
                "other parameters: if these products were made with settings of your own, give "
                "them with --config or --configfile and ask again"
            )


def _left_over(name: str) -> tuple[int, bool | None] | None:
    """The process that wrote a temporary of this name, and whether it still runs."""
    # Probes are of `ember.operations.preflight.check_writable`.
    return (0, False) if re.match(r"\.ember-\w+$", name) else writer(name)


def _is_final(path: str) -> bool:
    return path.count("/") == 1


def _differing(folder: Path) -> str:
    """The files of a directory product that its sidecar does not confirm."""
    if not folder.is_dir():
        return ""
    if (made := read_sidecar(folder)) is None:
        return f"it has no {SIDECAR}: its job was stopped, or a copy of it was"
    recorded, found = made.get("files") or {}, file_hashes(folder)
    changed = {name for name in found.keys() & recorded.keys() if found[name] != recorded[name]}
    faults = {
        "is missing": recorded.keys() - found.keys(),
        "is not what its job wrote": changed,
        "was added to it": found.keys() - recorded.keys(),
    }
    return "; ".join(f"{name} {what}" for what, names in faults.items() for name in sorted(names))


def _walk(results: Path, scales: Sequence[str]) -> list[str]:
    """Files and directory products under `results`, relative to its folder, sorted.

    A directory with a provenance of its own is one product; one that belongs to no scale is one
    foreign thing.
    """
    found = []
    for parent, folders, names in os.walk(results):
        here = Path(parent)
        units = [
            name
            for name in folders
            if name.endswith(_FILES)
            or (here / name).is_symlink()
            or (here / name / SIDECAR).is_file()
            or (here == results and name not in scales)
        ]
        folders[:] = [name for name in folders if name not in units]
        found += [here / name for name in (*units, *names)]
    return sorted(path.relative_to(results.parent).as_posix() for path in found)


def _other_job(made: dict) -> str:
    outputs = folded(made.get("outputs") or ["unknown"])
    return f"a copy: it says that rule {made.get('rule')} wrote it as {outputs}"


def _last(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()
