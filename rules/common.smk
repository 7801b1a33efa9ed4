# Helpers of the rules: where files go, what code a job depends on, what it asks for.
# They are pure functions of the configuration; the rules hold no logic of their own.
import copy
import sys
from functools import lru_cache
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.utils import update_config

# Not workflow.basedir: that is workflow/ when a catalogue starts from workflow/Snakefile.
ROOT = Path(str(workflow.current_basedir)).resolve().parent
SRC = ROOT / "src"
# What profile, command line or an outer workflow set over the configuration files.
GIVEN = copy.deepcopy(dict(config))

# This checkout's library, whatever is installed or stands on PYTHONPATH.
sys.path[:] = [str(SRC), *(path for path in sys.path if path != str(SRC))]

from ember.config.load import ConfigError, check_scale, load, with_types
from ember.operations import history, preflight, sources
from ember.operations.layers import read_layers
from ember.operations.plan import run_scale
from ember.operations.settings import CHECKS
from ember.records.code import Library
from ember.records.errors import EmberError

preflight.prepare_environment(SRC, sys.argv)
ENVIRONMENT = str(ROOT / "workflow" / "envs" / "ember.yaml")
LIBRARY = Library(SRC)
# By what the names of their products begin with.
PROGRAMMES = {"p1": "P1", "c2c": "C2C", "streaming": "Streaming", "lowbit": "Low-bit"}
PRODUCTS = []  # programme, section and path, as the rules declare them
# A --configfile on the command line replaces the profile's, and with it the profile's scale.
if "scale" not in GIVEN and (scale := run_scale()):
    GIVEN["scale"] = scale


def scale_file(config):
    """The file of the chosen scale, or an error that names the nearest one."""
    try:
        scale = GIVEN.get("scale", config.get("scale", "tiny"))
        return str(check_scale(scale, ROOT / "config" / "scale"))
    except ConfigError as error:
        raise WorkflowError(str(error)) from None


def load_settings(config):
    """The checked configuration as plain values; unknown and ill-typed keys are errors."""
    import yaml

    # Read here as well: in a module with a configuration of its own, Snakemake reads no files.
    files = [ROOT / "config" / "config.yaml", Path(scale_file(config))]
    sources = [
        (str(f.relative_to(ROOT)), yaml.safe_load(f.read_text("utf-8"))) for f in files
    ]
    merged = {}
    for _, values in sources:
        update_config(merged, values)
    sources.append(("--config or --configfile", GIVEN))
    try:
        settings = load(with_types(merged, GIVEN), sources, CHECKS).model_dump()
    except ConfigError as error:
        raise WorkflowError(str(error)) from None
    config["scale"] = settings["scale"]  # jobs are told the scale by it
    return settings


def given_settings():
    """What profile, command line or an outer workflow set over the configuration files."""
    return GIVEN


def before_planning(settings):
    """Stop before any rule is planned where a named model or corpus is not there."""
    try:
        preflight.check_place(Path("results"))
        preflight.check_models(settings, Path.cwd())
        preflight.check_real(settings, Path.cwd())
        preflight.check_anchor(settings, Path.cwd())
    except EmberError as error:
        raise WorkflowError(str(error)) from None


def before_work(settings):
    """Stop before the first job where results, the device or the cluster cannot be had."""
    executor = "local" if workflow.local_exec else workflow.executor_plugin.name
    try:
        preflight.check_local(settings, Path("results"), executor)
    except EmberError as error:
        raise WorkflowError(str(error)) from None


def stages():
    """The file of rules/ that holds each one read so far, as p1_gates for rules/p1/gates.smk."""
    found = {}
    for one in workflow.rules:
        place = Path(one.snakefile).resolve().relative_to(ROOT / "rules")
        if place.name != "bases.smk":
            found[one.name] = "_".join(place.with_suffix("").parts)
    return found


def conf(*keys):
    """One value of the configuration. A rule that takes only what it uses reruns only for that."""
    node = SETTINGS
    for key in keys:
        node = node[key]
    return node


def conf_of(path, *keys):
    """Some values of a section, by key."""
    return {key: conf(*path, key) for key in keys}


def inter(path):
    """An intermediate of the current scale: results/<scale>/<path>."""
    return f"results/{SETTINGS['scale']}/{path}"


def figure(name, section, shows):
    """Declares a figure, made of raster (in the report), vector and caption."""
    return _product(name, section, shows, ".png", ".pdf", ".caption.md")


def table(name, section, shows):
    """Declares a final table, made of data and the forms people paste."""
    return _product(name, section, shows, ".parquet", ".csv", ".md", ".tex")


def _product(name, section, shows, *endings):
    programme = PROGRAMMES.get(name.partition("_")[0], section)
    files = [f"results/{name}{ending}" for ending in endings]
    PRODUCTS.extend((programme, section, file) for file in files)
    shown = report(
        files[".csv" in endings],
        caption=str(ROOT / "workflow" / "report" / "product.rst"),
        category=programme,
        subcategory=section if section != programme else None,
        labels={"product": name, "shows": shows},
    )
    return [shown if file == str(shown) else file for file in files]


def products(*wanted):
    """Files of the products declared so far, of programmes or sections of one."""
    return [path for *places, path in PRODUCTS if {*places} & {*wanted}]


def study(step):
    """Params of a rule whose step (`ember.studies.steps`) makes intermediate tables."""
    return _run("study.py", step)


def publish(step):
    """Params of a rule whose step makes a final table."""
    return _run("publish.py", step)


def plot(step):
    """Params of a rule whose step draws a figure."""
    return _run("plot.py", step)


def _run(name, step):
    """With the hash of the script, of the step's module, and of all that they import."""
    try:
        return {"script": name, "step": step, "code": LIBRARY.job_hash(name, step)}
    except EmberError as error:
        raise WorkflowError(str(error)) from None


def code_of(*modules):
    """Hash of modules that a job imports by a name from the configuration, and of theirs."""
    try:
        return LIBRARY.code_hash(ROOT / "workflow" / "scripts" / "study.py", *modules)
    except EmberError as error:
        raise WorkflowError(str(error)) from None


def content_of(section, name):
    """Hash of the files on disk that a model or corpus is made from, None where it is of none."""
    try:
        return sources.content_sha256(conf(section, name))
    except EmberError as error:
        raise WorkflowError(str(error)) from None


def models_from(*kinds):
    """Names of the configured models with one of these sources, as a wildcard constraint."""
    names = [
        name for name, model in SETTINGS["models"].items() if model["source"] in kinds
    ]
    return "|".join(names) or "(?!)"


def runtime_settings():
    """What every rule that runs a model depends on."""
    return {key: SETTINGS[key] for key in ("device", "dtype", "seed")}


def threads_for_model():
    """CPU threads of a job that runs a model."""
    return SETTINGS["resources"]["threads"]


def gpus():
    """Accelerators of a job that runs a model."""
    return 1 if SETTINGS["device"] == "cuda" else 0


def grow(base):
    """A resource that doubles with each attempt, so that a retry can succeed."""
    return lambda wildcards, attempt: base * 2 ** (attempt - 1)


@lru_cache(maxsize=1)
def earlier_jobs():
    """What earlier jobs of this scale took, here and on the machines under docs/measured."""
    scale, measured = SETTINGS["scale"], ROOT / "docs" / "measured"
    return history.read_history(scale, Path("results"), measured)


def minutes(limit):
    """Minutes of a job: by its earlier runs, or `limit` where there are none (docs/estimate.md)."""
    resources, gpu = SETTINGS["resources"], None if gpus() else False
    factor, minimum = resources["runtime_factor"], resources["runtime_minimum"]
    return lambda wildcards, attempt, rulename: history.runtime_minutes(
        history.predict(
            earlier_jobs(), "_".join([rulename, *wildcards]), rulename, gpu
        ),
        limit,
        attempt,
        factor,
        minimum,
    )


def model_memory():
    """Memory of a job that holds a model, in MB."""
    return grow(SETTINGS["resources"]["mem_mb"])


def model_runtime():
    """Minutes of a job that trains or measures."""
    return minutes(SETTINGS["resources"]["runtime"])
