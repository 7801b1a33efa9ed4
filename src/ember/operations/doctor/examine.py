"""`ember doctor`: what in a results folder is broken, stale or foreign, and what mends it.

The workflow's plan says which files there should be, the products say what they were made of, and
both are held against what is there: first whether each product is whole, then whether it is what
its rule makes, then whether it was made by this code, with these parameters, from these inputs.
Nothing is changed. What cannot be checked is said, never passed over.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ember.measure.overhead import record_file
from ember.operations.doctor import bookkeeping, whole
from ember.operations.doctor.report import (
    BROKEN,
    FOREIGN,
    KINDS,
    LOCK,
    STALE,
    Call,
    Finding,
    Report,
    Unchecked,
    folded,
    remove,
    set_aside,
)
from ember.operations.plan import BadPlan, PlannedJob, planned_jobs
from ember.records.code import code_hash
from ember.records.errors import EmberError
from ember.records.provenance import SIDECAR, digest, provenance_of, source_root, tree_sha256

_LARGE = 200e6  # bytes: reading more is worth a line of progress
_CARRIERS = (".parquet", ".png", ".pdf")
_KEPT = {"results/README.md"}
_FOLLOWS = "Input files updated by another job"


class NotResults(EmberError):
    """Not a results folder of this workflow."""


@dataclass
class _Case:
    """A planned job some of whose products stand, and what is wrong with them."""

    scale: str
    job: PlannedJob
    faults: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # kind: (path, why)
    remove: list[str] = field(default_factory=list)
    reason: str | None = None  # Snakemake's, where it would run the job again by itself

    @property
    def kind(self) -> str | None:
        return next((kind for kind in KINDS if kind in self.faults), None)

    def add(self, kind: str, paths: Iterable[str], why: str) -> None:
        self.faults.setdefault(kind, []).extend((path, why) for path in paths)


def examine(
    results: Path,
    *,
    profile: str = "local",
    config: Sequence[str] = (),
    progress: Callable[[str], None] = lambda line: None,
) -> Report:
    """Examine `results`, at every scale found in it or at the one that `config` names.

    config: words as after `--config`; progress: takes a line when something takes long. Raises
    `NotResults` for another folder, `BadPlan` where the workflow cannot be planned at any scale.
    """
    results = Path(results)
    _check_place(results)
    if links := _dead_links(results.resolve()):
        return _before_planning(results, links)
    examination = _Examination(results, profile, tuple(config), progress)
    return examination.report()


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


def _before_planning(results: Path, links: list[str]) -> Report:
    """Snakemake plans nothing while a product is a link to nothing: that comes first."""
    findings = [Finding(BROKEN, (p,), "it is a link to nothing", remove([p])) for p in links]
    rest = Unchecked(("results",), "Snakemake cannot plan with these links: then ask again")
    folder = os.path.relpath(results.resolve().parent)
    return Report(folder, findings, [rest], commands=[remove(links)])


class _Examination:
    def __init__(self, results: Path, profile: str, config: tuple[str, ...], progress):
        self.folder = results.resolve().parent
        self.root = source_root()
        self.progress = progress
        self.profile = profile
        self.asked = next((w.partition("=")[2] for w in config if w.startswith("scale=")), None)
        self.config = tuple(word for word in config if not word.startswith("scale="))
        self.call = Call(profile, self.config, self._place())
        self.files = _walk(results.resolve(), self._known_scales())
        self.found = Report(os.path.relpath(self.folder))
        self.provenances: dict[str, dict | None] = {}
        self.scales = self._scales()
        self.plans = self._plans()
        self.cases: dict[tuple[str, str], _Case] = {}

    # What there is

    def _place(self) -> tuple[str, ...]:
        if (self.folder / "Snakefile").is_file():
            return ()
        return ("--snakefile", str(self.root / "Snakefile"), "--directory", str(self.folder))

    def _known_scales(self) -> list[str]:
        return sorted(file.stem for file in (self.root / "config" / "scale").glob("*.yaml"))

    def _scales(self) -> list[str]:
        if self.asked:
            return [self.asked]
        inside = {path.split("/")[1] for path in self.files if path.count("/") > 1}
        finals = {self._recorded_scale(path) for path in self.files if path.count("/") == 1}
        found = sorted((inside | finals) & set(self._known_scales()))
        default = _default_scale(self.root, self.profile)
        return found or ([default] if default else self._known_scales()[:1])

    def _recorded_scale(self, path: str) -> str | None:
        provenance = self._provenance(path) or {}
        return (provenance.get("config") or {}).get("scale")

    def _provenance(self, path: str) -> dict | None:
        """What a product says of itself; None if it says nothing or cannot be read."""
        if path not in self.provenances:
            file = self.folder / path
            carries = file.is_dir() or (file.suffix in _CARRIERS and file.is_file())
            try:
                self.provenances[path] = provenance_of(file) if carries else None
            except (EmberError, OSError, ValueError):
                self.provenances[path] = None
        return self.provenances[path]

    # The plans

    def _plans(self) -> dict[str, dict[str, PlannedJob]]:
        """Jobs by output, for every scale. One that cannot be planned is said."""
        plans, refused = {}, []
        with ThreadPoolExecutor() as pool:
            self.progress(f"planning scale {', '.join(self.scales)}")
            answers = pool.map(lambda scale: self._plan(scale, ["all"], every=True), self.scales)
            for scale, answer in zip(self.scales, answers, strict=True):
                if isinstance(answer, BadPlan):
                    refused.append(answer)
                    self._unchecked([f"results/{scale}"], f"not planned: {_last(answer)}")
                else:
                    plans[scale] = {path: job for job in answer for path in job.outputs}
        if not plans:
            raise refused[0]
        for scale, plan in plans.items():
            self._extend(scale, plan)
        return plans

    def _plan(
        self, scale: str, targets: Sequence[str], *, every: bool
    ) -> list[PlannedJob] | BadPlan:
        config = [f"scale={scale}", *self.config]
        try:
            return planned_jobs(
                targets, profile=self.profile, config=config, every=every, folder=self.folder
            )
        except BadPlan as error:
            return error

    def _extend(self, scale: str, plan: dict[str, PlannedJob]) -> None:
        """Add products that are not behind `all`, but that a rule makes if asked."""
        claims = {}
        for path in self.files:
            provenance = self._provenance(path) or {}
            claimed = path in (provenance.get("outputs") or ())
            if path not in plan and claimed and self._recorded_scale(path) == scale:
                claims.setdefault(provenance["outputs"][0], path)
        targets = list(claims.values())
        answer = self._plan(scale, targets, every=True) if targets else []
        if isinstance(answer, BadPlan):
            answers = [self._plan(scale, [target], every=True) for target in targets]
            answer = [job for jobs in answers if not isinstance(jobs, BadPlan) for job in jobs]
        plan.update({path: job for job in answer for path in job.outputs if path not in plan})

    # Which scale a product is judged at

    def _owner(self) -> dict[str, str]:
        """The scale of every standing product; of final ones, the one at which it was made."""
        owner = {}
        any_plan = {path for plan in self.plans.values() for path in plan}
        finals = [path for path in any_plan if self._stands(path) and path.count("/") == 1]
        made = {path: self._made_at(path) for path in finals}
        usual = max(self.plans, key=lambda scale: list(made.values()).count(scale))
        for scale, plan in self.plans.items():
            for path in plan:
                if path.count("/") > 1 and self._stands(path):
                    owner[path] = scale
        for path, scale in made.items():
            if self.asked is None or scale in (None, self.asked):
                owner[path] = scale if scale in self.plans else usual
        return self._unmixed(owner)

    def _made_at(self, path: str) -> str | None:
        """The recorded scale of the job's products, for renderings too."""
        job = next(plan[path] for plan in self.plans.values() if path in plan)
        scales = [self._recorded_scale(other) for other in job.outputs]
        return next((scale for scale in scales if scale), None)

    def _unmixed(self, owner: dict[str, str]) -> dict[str, str]:
        """A final product that rests on one of another scale: both are judged at the newer's."""
        finals = {path for path in owner if path.count("/") == 1}
        mixed = set()
        for path in finals:
            job = self.plans[owner[path]].get(path)
            used = finals.intersection(job.inputs if job else ())
            if any(owner[other] != owner[path] for other in used):
                mixed |= {path, *used}
        if not mixed:
            return owner
        newest = max(mixed, key=lambda path: (self._provenance(path) or {}).get("started") or "")
        plan = self.plans[owner[newest]]
        linked = set(mixed)
        while True:
            more = {p for p in finals - linked if p in plan and linked & {*plan[p].inputs}}
            more |= {i for p in linked if p in plan for i in plan[p].inputs if i in finals - linked}
            if not more:
                break
            linked |= more
        return owner | dict.fromkeys(linked, owner[newest])

    def _stands(self, path: str) -> bool:
        return os.path.lexists(self.folder / path)

    # The examination

    def report(self) -> Report:
        self._check_known()
        owner = self._owner()
        for path, scale in sorted(owner.items()):
            self._case(scale, path)
        self._look_at_processes()
        for case in list(self.cases.values()):
            self._check_whole(case)
        for case in list(self.cases.values()):
            self._check_origin(case)
        self._check_missing(owner)
        self._check_marks(owner)
        for scale in self.plans:
            self._ask_snakemake(scale, owner)
        self._check_records(owner)
        self._collect(owner)
        self._check_strangers(owner)
        self._note(owner)
        self._combine()
        self.found.findings.sort(key=lambda f: (KINDS.index(f.kind), f.paths))
        return self.found

    def _case(self, scale: str, path: str) -> _Case:
        job = self.plans[scale][path]
        return self.cases.setdefault((scale, job.name), _Case(scale, job))

    def _unchecked(self, paths: Sequence[str], why: str) -> None:
        self.found.unchecked.append(Unchecked(tuple(sorted(paths)), why))

    def _check_known(self) -> None:
        """A folder called results may be anyone's."""
        planned = {path for plan in self.plans.values() for path in plan}
        known = [p for p in self.files if p in planned | _KEPT or self._provenance(p) is not None]
        if self.files and not known and not (self.folder / ".snakemake").is_dir():
            raise NotResults(
                f"{self.found.folder}/results holds {len(self.files)} files and none that this "
                "workflow makes\ngive the folder in which the workflow has run"
            )

    def _look_at_processes(self) -> None:
        running = bookkeeping.workflows(self.folder)
        if running:
            numbers = ", ".join(map(str, running))
            why = f"a workflow is running here (process {numbers}): ask again when it has ended"
            self._unchecked(["results"], why)
        elif locked := bookkeeping.locks(self.folder):
            why = (
                "a workflow was killed and left its lock; none is running on this machine (if one "
                "is on another machine, or its jobs are still in a queue, let it end)"
            )
            command = self.call.command(self.asked, (), "--unlock")
            self.found.findings.append(Finding(LOCK, tuple(locked), why, command))

    def _check_whole(self, case: _Case) -> None:
        standing = [path for path in case.job.outputs if self._stands(path)]
        missing = [path for path in case.job.outputs if path not in standing]
        if missing:
            case.add(BROKEN, missing, f"missing, though {folded(standing)} of the same job stands")
        unchecked: dict[str, list[str]] = {}
        for path in standing:
            self._announce(path)
            verdict = whole.check(self.folder / path)
            if verdict.fault:
                case.add(BROKEN, [path], verdict.fault)
                wrong_kind = (self.folder / path).is_dir() == (
                    Path(path).suffix in whole.FILE_ENDINGS
                )
                in_the_way = wrong_kind or not (self.folder / path).exists()
                case.remove += [path] if in_the_way else []
            elif verdict.unchecked:
                unchecked.setdefault(verdict.unchecked, []).append(path)
        if not case.faults:  # what is made again needs no check
            for why, paths in unchecked.items():
                self._unchecked(paths, why)

    def _announce(self, path: str) -> None:
        file = self.folder / path
        files = file.rglob("*") if file.is_dir() else [file]
        size = sum(one.stat().st_size for one in files if one.is_file())
        if size > _LARGE:
            self.progress(f"reading {path} ({size / 1e9:.1f} GB)")

    def _check_origin(self, case: _Case) -> None:
        """Provenance against the plan, the code and the inputs."""
        broken = {path for path, _ in case.faults.get(BROKEN, ())}
        made = {}
        for path in case.job.outputs:
            file = self.folder / path
            carries = file.suffix in _CARRIERS or file.is_dir()
            if path in broken or not carries or not self._stands(path):
                continue
            provenance = self._provenance(path)
            if provenance is None:
                why = "it carries no provenance: no rule of the workflow wrote it"
                case.add(FOREIGN, [path], why)
            elif provenance.get("rule") != case.job.rule or path not in provenance["outputs"]:
                case.add(FOREIGN, [path], _other_job(provenance))
            else:
                made[path] = provenance
        starts = {provenance.get("started") for provenance in made.values()}
        if len(starts) > 1:
            why = f"written by different runs of the job: {', '.join(sorted(map(str, starts)))}"
            case.add(BROKEN, made, why)
        for path in [path for path in made if path.endswith(".pdf")]:
            raster = path.removesuffix(".pdf") + ".png"
            if raster in made and made[raster] != made[path]:
                case.add(BROKEN, [path, raster], "their provenance differs: not of one drawing")
        self._check_code(case, made)
        self._check_inputs(case, made)

    def _check_code(self, case: _Case, made: dict[str, dict]) -> None:
        for params in [provenance.get("params") or {} for provenance in made.values()][:1]:
            script = self.root / "workflow" / "scripts" / str(params.get("script"))
            step = str(params.get("step") or "").rpartition(".")[0]
        if not made:
            return
        if not script.is_file():
            self._unchecked(list(made), f"there is no {script.name}: its code is not compared")
            return
        modules = [f"ember.studies.{step}"] if step else []
        now = code_hash(script, self.root / "src", *modules)
        other = [path for path, provenance in made.items() if provenance.get("code") != now]
        if other:
            was = made[other[0]].get("code") or "unknown"
            why = f"made by other code ({was[:8]}) than there is now ({now[:8]})"
            case.add(STALE, other, why)

    def _check_inputs(self, case: _Case, made: dict[str, dict]) -> None:
        changed: dict[str, list[str]] = {}
        for path, provenance in made.items():
            recorded = {entry["path"]: entry for entry in provenance.get("inputs") or ()}
            if set(recorded) != set(case.job.inputs):
                only = sorted(set(recorded) ^ set(case.job.inputs))
                case.add(STALE, [path], f"made from other inputs than the plan's: {folded(only)}")
                continue
            for name, entry in recorded.items():
                if self._is_other(case.scale, name, entry["sha256"]):
                    changed.setdefault(name, []).append(path)
        by_products: dict[tuple, list[str]] = {}
        for name, paths in changed.items():
            by_products.setdefault(tuple(paths), []).append(name)
        for paths, names in by_products.items():
            case.add(STALE, paths, f"not what it was made from any more: {folded(names)}")

    def _is_other(self, scale: str, name: str, sha256: str) -> bool:
        """Whether an input is there, whole, and not what was read."""
        file = self.folder / name
        if not file.exists():
            return False  # found as missing
        job = self.plans[scale].get(name)
        case = self.cases.get((scale, job.name)) if job else None
        if case and name in {path for path, _ in case.faults.get(BROKEN, ())}:
            return False  # that is where the mending begins
        self._announce(name)
        return digest(file)[0] != sha256

    def _check_missing(self, owner: dict[str, str]) -> None:
        """Inputs that are gone while products stand: Snakemake does not make them again."""
        for case in list(self.cases.values()):
            for name in case.job.inputs:
                job = self.plans[case.scale].get(name)
                if self._stands(name) or job is None:
                    continue
                if any(self._stands(path) for path in job.outputs):
                    continue  # an incomplete job, found already
                key = (case.scale, job.name)
                gone = self.cases.setdefault(key, _Case(case.scale, job))
                if name not in {path for path, _ in gone.faults.get(STALE, ())}:
                    of = folded([p for p in case.job.outputs if self._stands(p)])
                    gone.add(STALE, [name], f"missing, though {of} was made from it and stands")

    def _check_marks(self, owner: dict[str, str]) -> None:
        for path in bookkeeping.incomplete(self.folder):
            if path in owner:
                why = "Snakemake marked it as incomplete: its job was killed"
                self._case(owner[path], path).add(BROKEN, [path], why)

    def _ask_snakemake(self, scale: str, owner: dict[str, str]) -> None:
        """Which standing products Snakemake would make again, and why."""
        targets = sorted(path for path, owned in owner.items() if owned == scale)
        if not targets:
            return
        answer = self._plan(scale, targets, every=False)
        if isinstance(answer, BadPlan):
            self._unchecked(targets, f"Snakemake's own reasons are unknown: {_last(answer)}")
            return
        for job in answer:
            case = self.cases.get((scale, job.name))
            if case is None:
                continue
            case.reason = job.reason
            own = [part for part in job.reason.split("; ") if not part.startswith(_FOLLOWS)]
            standing = [path for path in job.outputs if owner.get(path) == scale]
            if own and standing and not case.faults:
                case.add(STALE, standing, f"Snakemake would make it again: {_brief(own)}")

    def _check_records(self, owner: dict[str, str]) -> None:
        """Parameters: those the product names are those of the job Snakemake remembers."""
        lost = []
        for case in self.cases.values():
            if case.faults or case.reason:
                continue
            for path in case.job.outputs:
                if owner.get(path) != case.scale:
                    continue
                record = bookkeeping.record(self.folder, path)
                params = bookkeeping.recorded_params(record) if record else None
                provenance = self._provenance(path)
                if params is None:
                    lost.append(path)
                elif provenance is not None and not _same_params(params, provenance):
                    why = "made with other parameters than the job that Snakemake remembers"
                    case.add(FOREIGN, [path], why)
        if lost:
            why = (
                "Snakemake holds no record of the jobs (.snakemake/metadata): their parameters "
                "were not compared with the configuration"
            )
            self._unchecked(lost, why)

    # What to do about it

    def _collect(self, owner: dict[str, str]) -> None:
        for case in self.cases.values():
            if case.kind is None:
                continue
            noted = case.faults[case.kind]
            paths = tuple(dict.fromkeys(path for path, _ in noted))
            why = "; ".join(dict.fromkeys(why for _, why in noted))
            behind = self._behind(case)
            command = self._mend([*self._ancestors_at_fault(case), case])
            rest = tuple(
                sorted(p for b in behind if b is not case for p in b.job.outputs if p in owner)
            )
            self.found.findings.append(Finding(case.kind, paths, why, command, case.scale, rest))

    def _mend(self, cases: list[_Case]) -> str:
        """One command that makes the products of these jobs again, and all that rest on them."""
        scale = cases[0].scale
        behind = {b.job.name: b for case in cases for b in self._behind(case)}
        used = {path for case in behind.values() for path in case.job.inputs}
        tops = [c for c in behind.values() if not used.intersection(c.job.outputs)]
        gone = [p for c in cases for p in c.job.outputs if not self._stands(p)]
        targets = sorted({*(case.job.outputs[0] for case in tops), *gone})
        forced = sorted(case.job.outputs[0] for case in cases if self._needs_force(case))
        options = ["--forcerun", *forced] if forced else []
        options += ["--rerun-incomplete"] if bookkeeping.incomplete(self.folder) else []
        command = self.call.command(scale, targets, *options)
        wrong = [path for case in cases for path in case.remove]
        return f"{remove(wrong)} && {command}" if wrong else command

    def _needs_force(self, case: _Case) -> bool:
        """Whether Snakemake does not see by itself that the job has to run again."""
        return case.reason is None and any(self._stands(path) for path in case.job.outputs)

    def _behind(self, case: _Case) -> list[_Case]:
        """The job and every standing one of its scale that rests on it."""
        found, waiting = {}, [case]
        while waiting:
            here = waiting.pop()
            if here.job.name not in found:
                found[here.job.name] = here
                outputs = set(here.job.outputs)
                waiting += [
                    other
                    for (scale, _), other in self.cases.items()
                    if scale == case.scale and outputs.intersection(other.job.inputs)
                ]
        return list(found.values())

    def _ancestors_at_fault(self, case: _Case) -> list[_Case]:
        plan, found, waiting = self.plans[case.scale], {}, [*case.job.inputs]
        while waiting:
            job = plan.get(waiting.pop())
            if job is not None and job.name not in found:
                found[job.name] = self.cases.get((case.scale, job.name))
                waiting += job.inputs
        return [other for other in found.values() if other is not None and other.kind]

    # What no rule makes

    def _check_strangers(self, owner: dict[str, str]) -> None:
        planned = {path for plan in self.plans.values() for path in plan}
        benches = {
            path
            for scale, plan in self.plans.items()
            for job in plan.values()
            for path in (job.benchmark, str(record_file(scale, job.name)))
        }
        states = {
            f"results/{scale}/states/{job.wildcards['model']}.pt": job
            for scale, plan in self.plans.items()
            for job in plan.values()
            if "model" in job.wildcards
        }
        known = planned | benches | _KEPT
        unknown = [p for p in self.files if not known.intersection(_and_parents(p))]
        for path in sorted(benches & set(self.files)):
            if not whole.is_whole_jsonl(self.folder / path):
                why = "not JSON lines: it is written anew when the job runs"
                self.found.findings.append(Finding(BROKEN, (path,), why, remove([path])))
        strangers = []
        for path in unknown:
            if path in states:
                self._check_state(path, states[path])
            elif left := bookkeeping.temporary(Path(path).name):
                self._check_temporary(path, left)
            elif not self._is_elsewhere(path):
                strangers.append(path)
        grouped: dict[str, list[str]] = {}
        for path in strangers:
            grouped.setdefault(self._why_foreign(path), []).append(path)
        for why, paths in grouped.items():
            self.found.findings.append(Finding(FOREIGN, tuple(paths), why, set_aside(paths)))

    def _is_elsewhere(self, path: str) -> bool:
        """Of a scale that is not examined, or written by a command of ember."""
        scale = path.split("/")[1] if path.count("/") > 1 else self._recorded_scale(path)
        skipped = scale in self._known_scales() and scale not in self.plans
        rule = (self._provenance(path) or {}).get("rule") or ""
        if rule.startswith("ember "):
            fault = whole.check(self.folder / path).fault
            if fault:
                self.found.findings.append(Finding(BROKEN, (path,), fault, remove([path])))
            return True
        return skipped

    def _check_state(self, path: str, job: PlannedJob) -> None:
        model = job.outputs[0]
        if self._stands(model):
            why = f"the state of a training that is over: {model} stands"
            self.found.findings.append(Finding(FOREIGN, (path,), why, remove([path])))
        else:
            self.found.notes.append(f"{path}: a training was stopped; making {model} resumes it")

    def _check_temporary(self, path: str, left: bookkeeping.Temporary) -> None:
        if left.alive:
            why = f"a job is writing it (process {left.process}): ask again when it has ended"
            self._unchecked([path], why)
            return
        where = "" if left.alive is False else " on another machine (see that it does not run)"
        why = f"left over by a killed job{where}"
        self.found.findings.append(Finding(FOREIGN, (path,), why, remove([path])))

    def _why_foreign(self, path: str) -> str:
        parts = path.split("/")
        if len(parts) == 2 and (self.folder / path).is_dir():
            return f"no scale is called {parts[1]}"
        provenance = self._provenance(path)
        if provenance is None:
            return "no rule makes it, and it says nothing of where it comes from"
        if path in (provenance.get("outputs") or ()):
            return f"rule {provenance.get('rule')} made it, and no rule makes it now"
        return _other_job(provenance)

    # Notes and the combined commands

    def _note(self, owner: dict[str, str]) -> None:
        for scale, plan in self.plans.items():
            done = sum(owner.get(path) == scale for path in plan)
            self.found.notes.append(f"scale {scale}: {done} of {len(plan)} products stand")
        wanted = self.asked or _default_scale(self.root, self.profile)
        made = {self._made_at(path) for path in owner if path.count("/") == 1} - {None, wanted}
        for scale in sorted(made):
            command = self.call.command(wanted, ["all"])
            self.found.notes.append(
                f"final products stand at scale {scale}; to have them at {wanted}: {command}"
            )
        left = [p for p in self.files if self._is_unexamined(p)]
        if left:
            self.found.notes.append(
                f"not examined, of other scales than {self.asked}: {len(left)} files"
            )

    def _is_unexamined(self, path: str) -> bool:
        if self.asked is None or path in _KEPT:
            return False
        scale = path.split("/")[1] if path.count("/") > 1 else self._recorded_scale(path)
        return scale in self._known_scales() and scale != self.asked

    def _combine(self) -> None:
        findings = self.found.findings
        commands = [f.command for f in findings if f.kind == LOCK]
        loose = [f for f in findings if f.scale is None and f.kind != LOCK]
        gone = [p for f in loose if f.command.startswith("rm ") for p in f.paths]
        aside = [p for f in loose if f.command.startswith("mkdir ") for p in f.paths]
        commands += [remove(gone)] if gone else []
        commands += [set_aside(aside)] if aside else []
        for scale in self.plans:
            cases = [case for case in self.cases.values() if case.scale == scale and case.kind]
            commands += [self._mend(cases)] if cases else []
        self.found.commands = commands


def _walk(results: Path, scales: Sequence[str]) -> list[str]:
    """Files and directory products under `results`, relative to its folder, sorted.

    A directory with a provenance of its own is one product; one that belongs to no scale is one
    foreign thing.
    """
    found = []
    for parent, folders, names in os.walk(results):
        here = Path(parent)
        units = [name for name in folders if _is_unit(here / name)]
        units += [name for name in folders if here == results and name not in scales]
        folders[:] = [name for name in folders if name not in units]
        found += [here / name for name in (*units, *names)]
    base = results.parent
    return sorted((path.relative_to(base)).as_posix() for path in found)


def _is_unit(folder: Path) -> bool:
    named_as_file = folder.suffix in whole.FILE_ENDINGS
    return named_as_file or folder.is_symlink() or (folder / SIDECAR).is_file()


def _and_parents(path: str) -> list[str]:
    return [path, *(parent.as_posix() for parent in Path(path).parents)]


def _default_scale(root: Path, profile: str) -> str | None:
    """The scale that a profile asks for."""
    import yaml

    try:
        options = yaml.safe_load((root / profile / "config.yaml").read_text())
        chosen = yaml.safe_load((root / profile / options["configfile"]).read_text())
        return chosen["scale"]
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        return None


def _other_job(provenance: dict) -> str:
    outputs = folded(provenance.get("outputs") or ["unknown"])
    return f"a copy: it says that rule {provenance.get('rule')} wrote it as {outputs}"


def _same_params(recorded: list, provenance: dict) -> bool:
    named = [*(provenance.get("params") or {}).values(), provenance.get("code")]
    return all(value in named for value in recorded)


def _brief(reasons: list[str]) -> str:
    text = "; ".join(reasons).strip()
    return text if len(text) <= 300 else text[:300] + " …"


def _last(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()
