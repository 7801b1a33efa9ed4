"""What every script of the workflow shares: log, clean failure, provenance, atomic products.

    with job.start(snakemake) as run:
        rows = step(run.input.model, **run.params.settings, seed=run.params.seed)
        run.table(rows, SCHEMA)

Figures and final tables are written by `ember.studies.style.save` and
`ember.operations.publish.publish`, which only the scripts that use them import: a job's code is
all that its script reaches.

Everything a job writes carries the job's provenance (P1-0.5), and a finished job leaves its record
(`ember.measure.overhead.record_file`). A failure ends the process with one clear message in the
log and on stderr, and leaves no half-written product.
"""

import json
import logging
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

from ember.measure import overhead
from ember.measure.memory import total_bytes
from ember.records.atomic import write_text
from ember.records.errors import EmberError
from ember.records.provenance import collect, describe, file_hashes, write_sidecar

log = logging.getLogger("ember.job")
PARTS = ("imports", "model_load", "provenance")
GUARDED = 0.95  # of the memory there is: what a job may take before it is ended


class Job:
    """The job's files and parameters, and writers that stamp provenance on its products."""

    def __init__(self, snakemake):
        self.snakemake = snakemake
        self.input = snakemake.input
        self.output = snakemake.output
        self.params = snakemake.params
        self.wildcards = snakemake.wildcards
        self.threads = snakemake.threads
        self._began = time.perf_counter()
        self._started = datetime.now(UTC)
        self._start_s = overhead.process_age_s()
        self._made: dict | None = None

    def provenance(self) -> dict:
        """Rule, inputs with hashes, parameters, code, versions, hardware, start and duration."""
        with overhead.part("provenance"):
            self._made = self._collect() | {"job": self._identity()}
        return self._made

    def _collect(self) -> dict:
        from ember.measure.system import hardware

        params = {key: value for key, value in self.params.items() if key != "code"}
        named = {
            name: str(value) if isinstance(value, str) else [str(path) for path in value]
            for name, value in self.input.items()
        }
        made = collect(
            rule=self.snakemake.rule,
            inputs=[str(path) for path in self.input],
            outputs=[str(path) for path in self.output],
            params=dict(self.wildcards.items()) | params,
            config={"scale": self.snakemake.config.get("scale")},
            seeds=_seeds(params),
            code=self.params.get("code"),
            threads=self.threads,
            started=self._started.isoformat(timespec="seconds"),
            seconds=time.perf_counter() - self._began,
            hardware=hardware(),
        )
        return made | {"arguments": named}  # by which the step knows its inputs

    def _identity(self) -> dict:
        """Name (as of its benchmark file), and what it asked of the scheduler."""
        resources = self.snakemake.resources
        cluster = os.environ.get("SLURM_JOB_ID")
        return {
            "name": "_".join([self.snakemake.rule, *map(str, self.wildcards)]),
            "timing": bool(resources.get("timing")),
            "gpus": int(resources.get("gpu") or 0),
            **({"slurm_job": cluster} if cluster else {}),
        }

    def record(self) -> None:
        """Leave what the job read and wrote, and what of its time was not its own work.

        Not in the products' provenance: they are written before the job is done.
        """
        made = self._made or self.provenance()
        with overhead.part("provenance"):
            products = [describe(path) for path in self.output]
        times = {"start_s": self._start_s, "elapsed_s": time.perf_counter() - self._began}
        parts = overhead.seconds()
        times |= {f"{name}_s": round(parts.get(name, 0.0), 4) for name in PARTS}
        path = overhead.record_file(self.snakemake.config.get("scale"), made["job"]["name"])
        write_text(path, json.dumps(made | {"products": products, "times": times}) + "\n")

    def table(self, rows, schema, path=None) -> None:
        """Write an intermediate table, by default the job's only output."""
        from ember.records.tables import write_table

        path = Path(path or self.output[0])
        write_table(path, rows, schema, self.provenance())
        log.info("wrote %s", path)

    @property
    def stem(self) -> Path:
        """The first output without its ending: where a figure or a final table goes."""
        return Path(self.output[0]).with_suffix("")

    def stamp(self, folder) -> None:
        """Leave the provenance inside a directory product, with the hashes of its files."""
        write_sidecar(Path(folder), self.provenance() | {"files": file_hashes(folder)})


@contextmanager
def start(snakemake) -> Iterator[Job]:
    """Run a job's body with log, threads and clean failure."""
    _open_log(snakemake.log[0] if snakemake.log else None)
    _limit_threads(snakemake.threads, timed=bool(snakemake.resources.get("timing")))
    run = Job(snakemake)
    log.info("rule %s starts", snakemake.rule)
    guard = _start_guard(snakemake) if snakemake.params.get("runtime") else None
    try:
        _import_libraries(snakemake)
        yield run
        run.record()
    except EmberError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("interrupted; nothing half-written is kept and the next run resumes", 130)
    except MemoryError as error:
        _fail(f"out of memory: {error or 'the allocation failed'}; {_MEMORY_REMEDY}", 1)
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":
            _fail(f"out of device memory: {str(error).splitlines()[0]}; {_MEMORY_REMEDY}", 1)
        log.error("unexpected error\n%s", traceback.format_exc())
        raise
    finally:
        if guard:
            guard.terminate()
    log.info("rule %s done in %.1f s", snakemake.rule, time.perf_counter() - run._began)


_MEMORY_REMEDY = (
    "use a smaller scale, shorter contexts or fewer documents, or give the job more memory "
    "(resources.mem_mb)"
)


def _start_guard(snakemake) -> subprocess.Popen:
    """A process beside this one that ends it, and what it started, at the memory limit (L-7)."""
    given = snakemake.config.get("resources", {})
    limit = given.get("guard_gb") or GUARDED * total_bytes() / 1e9
    command = [sys.executable, "-m", "ember.commands.main", "guard", "--pid", str(os.getpid())]
    command += ["--host-limit-gb", str(limit)]
    if gpu := given.get("guard_gpu_gb"):
        command += ["--gpu-limit-gb", str(gpu)]
    # Its own session: an interrupt ends the job, and the job ends its guard.
    with open(snakemake.log[0] if snakemake.log else os.devnull, "a") as said:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
        )


def _import_libraries(snakemake) -> None:
    """The slow libraries that this kind of job imports in any case, so that their time is seen."""
    names = ["torch"] if snakemake.params.get("runtime") else []
    names += ["matplotlib.pyplot"] if any(str(f).endswith(".png") for f in snakemake.output) else []
    with overhead.part("imports"):
        for name in names:
            with suppress(ImportError):  # a gate's to say, or the script's own
                import_module(name)


def _fail(message: str, status: int) -> None:
    log.error("error: %s", message)
    raise SystemExit(status) from None


def _open_log(path) -> None:
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_text(Path(path), "")  # then appended to, as its guard does
        handlers.append(logging.FileHandler(path, mode="a", encoding="utf-8"))
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
        handlers=handlers,
        force=True,
    )


def _limit_threads(threads: int, timed: bool) -> None:
    # Before torch is imported: its thread pools read these once.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    if not timed:
        # Threads that spin for long while they wait make a small model's steps ten times as long
        # where other jobs want the cores; those that sleep at once make them up to twice as long
        # where none does. A job whose times are measured has the cores to itself.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # about 0.1 ms; goes before the policy


def _seeds(params) -> dict:
    runtime = params.get("runtime") or {}
    seed = params.get("seed", runtime.get("seed") if isinstance(runtime, dict) else None)
    return {} if seed is None else {"seed": seed}
