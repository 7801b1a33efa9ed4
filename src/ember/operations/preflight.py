"""What can be known to fail before any job starts (no torch, a few milliseconds)."""

import ctypes
import glob
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ember.records.errors import EmberError
from ember.records.remedy import remember


class Unready(EmberError):
    """The workflow cannot run here as configured; the message says what to change."""


def prepare_environment(src: Path, arguments: Sequence[str]) -> None:
    """What jobs inherit: the library at `src` before any installed one, the options of the run
    (`arguments`, its command line), and an allocator that keeps its memory. glibc gives every large
    block back to the system and faults it in anew, which is a tenth of a training step on the CPU.
    """
    others = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = [str(src), *(path for path in others if path and path != str(src))]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    remember(arguments)
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**25))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**31 - 1))
    os.environ.setdefault("MALLOC_TOP_PAD_", str(2**26))


def check_models(settings: Mapping, root: Path) -> None:
    """Every model and corpus on disk that the configuration names exists. Raises `Unready`."""
    for name, model in settings["models"].items():
        if model["source"] == "local" and not (root / model["path"] / "config.json").is_file():
            raise Unready(
                f"models.{name}.path: {model['path']} holds no model (no config.json). "
                "Set it to a directory in Hugging Face format (config.json and safetensors)."
            )
    for name, corpus in settings["corpora"].items():
        for pattern in corpus["paths"]:
            if not glob.glob(str(root / Path(pattern).expanduser()), recursive=True):
                raise Unready(
                    f"corpora.{name}.paths: nothing matches {pattern}. Set it to text files."
                )


def check_real(settings: Mapping, root: Path) -> None:
    """Local copies of published fusers and benchmarks are there. Raises `Unready`."""
    real = settings["c2c"]["real"] or {"pairs": {}, "benchmarks": {}}
    fusers = {f"pairs.{name}.fuser": pair["fuser"] for name, pair in real["pairs"].items()}
    asked = {f"benchmarks.{name}": one for name, one in real["benchmarks"].items()}
    for name, one in (fusers | asked).items():
        source = one and one["source"]
        # What is no path is an id on the hub.
        if source and (source[0] in "/.~" or Path(source).suffix in (".parquet", ".jsonl")):
            place = (root / Path(source).expanduser() / one.get("folder", "")).resolve()
            if not place.exists():
                raise Unready(
                    f"c2c.real.{name}.source: there is no {place}. Correct it, or give a hub id."
                )


def check_anchor(settings: Mapping, root: Path) -> None:
    """The earlier pipeline table to compare with, where one is set, is there. Raises `Unready`."""
    anchor = settings["p1"]["pipeline"]["anchor"]
    if anchor is None:
        return
    if (root / anchor).resolve() == (root / "results" / "p1_pipeline.parquet").resolve():
        raise Unready(
            f"p1.pipeline.anchor: {anchor} is the table that this run makes. "
            "Copy it elsewhere and name the copy."
        )
    if not (root / anchor).is_file():
        raise Unready(
            f"p1.pipeline.anchor: {anchor} does not exist. "
            "Set it to a p1_pipeline.parquet of an earlier run, or to null."
        )


def check_place(results: Path, python: str = sys.executable) -> None:
    """`results` is a folder, or can become one, and jobs can be started. Raises `Unready`."""
    if shlex.quote(python) != python:
        raise Unready(
            f"Snakemake cannot start jobs with {python}: a path with spaces or other characters "
            "that a shell does not take as they are. Move the checkout, or make the environment "
            "elsewhere and start the workflow from there."
        )
    if results.exists() and not results.is_dir():
        raise Unready(
            f"cannot write to {results}: it is a file. Move it away, or start the workflow "
            "elsewhere with --directory."
        )


def check_local(settings: Mapping, results: Path, executor: str) -> None:
    """The results folder is writable, and there is what `executor` runs jobs on.

    executor: "local", or Snakemake's name for another. On a cluster the device is checked by the
    gate on the node. Raises `Unready`.
    """
    check_writable(results)
    local = executor == "local"
    if executor == "slurm" and shutil.which("sbatch") is None:
        raise Unready(
            "there is no SLURM here: no program sbatch on PATH. Start the workflow on the login "
            "node of a cluster, or run it here with --profile local."
        )
    if not local and shlex.quote(str(results.resolve())) != str(results.resolve()):
        raise Unready(
            f"{results.resolve()} has spaces or other characters that a cluster's shell does not "
            "take as they are. Move the checkout, or start the workflow elsewhere with --directory."
        )
    if local and settings["device"] == "cuda" and cuda_devices() == 0:
        raise Unready(
            f"scale {settings['scale']} needs a GPU and no CUDA device is visible here. "
            "Run it with --profile slurm on a cluster, or choose --config scale=tiny."
        )


def check_writable(folder: Path) -> None:
    """Products can be written to `folder`. Raises `Unready` naming it and the cause."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=folder, prefix=".ember-")
        os.close(descriptor)
        os.unlink(name)
    except OSError as error:
        raise Unready(
            f"cannot write to {folder}: {error.strerror}. Free space, fix the folder's "
            "permissions, or start the workflow elsewhere with --directory."
        ) from None


def cuda_devices() -> int:
    """CUDA devices the driver reports; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value
