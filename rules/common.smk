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
from ember.operations.history import predict, read_history, runtime_minutes
from ember.operations.plan import run_scale
from ember.operations.preflight import (
    check_anchor,
    check_local,
    check_models,
    check_place,
    prepare_environment,
)
from ember.records.code import code_hashes
from ember.records.errors import EmberError

prepare_environment(SRC, sys.argv)
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
        settings = load(with_types(merged, GIVEN), sources).model_dump()
    except ConfigError as error:
        raise WorkflowError(str(error)) from None
    config["scale"] = settings["scale"]  # jobs are told the scale by it
    return settings


def given_settings():
    """What profile, command line or an outer workflow set over the configuration files."""
    return GIVEN


def stages():
    """The file of rules/ that holds each rule read so far."""
    return {rule.name: Path(rule.snakefile).stem for rule in workflow.rules}


def before_planning(settings):
    """Stop before any rule is planned where a named model or corpus is not there."""
    try:
        check_place(Path("results"))
        check_models(settings, Path.cwd())
        check_anchor(settings, Path.cwd())
    except EmberError as error:
        raise WorkflowError(str(error)) from None


def before_work(settings):
    """Stop before the first job where results, the device or the cluster cannot be had."""
    executor = workflow.executor_plugin.name if workflow.executor_plugin else "local"
    try:
        check_local(settings, Path("results"), executor)
    except EmberError as error:
        raise WorkflowError(str(error)) from None


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


def figure(name):
    """A figure of the paper: raster, vector and the caption with its numbers."""
    return [f"results/{name}{ending}" for ending in (".png", ".pdf", ".caption.md")]


def table(name):
    """A table of the paper: data, and the forms people paste."""
    return [f"results/{name}{ending}" for ending in (".parquet", ".csv", ".md", ".tex")]


def reported_figure(name, category, subcategory=None):
    """The files of a figure, with the raster shown in the report."""
    return [_reported(name, ".png", category, subcategory), *figure(name)[1:]]


def reported_table(name, category, subcategory=None):
    """The files of a table, with the CSV shown in the report."""
    parquet, _, *rest = table(name)
    return [parquet, _reported(name, ".csv", category, subcategory), *rest]


def _reported(name, ending, category, subcategory):
    return report(
        f"results/{name}{ending}",
        caption=str(ROOT / "workflow" / "report" / f"{name}.rst"),
        category=category,
        subcategory=subcategory,
    )


def logs(name):
    """The log of a rule: logs/<scale>/<name>.log."""
    return f"logs/{SETTINGS['scale']}/{name}.log"


def bench(name):
    """Snakemake's own timing of a rule."""
    return f"results/{SETTINGS['scale']}/benchmarks/{name}.jsonl"


def code_of_scripts():
    """Hash of every script with everything it imports from the library, by file name."""
    try:
        return code_hashes((ROOT / "workflow" / "scripts").glob("*.py"), SRC)
    except EmberError as error:
        raise WorkflowError(str(error)) from None


def code(script):
    """Hash of a script and of everything it imports from the library."""
    return CODE[script]


def scripts(script):
    """Path of a rule's script."""
    return str(ROOT / "workflow" / "scripts" / script)


def model_dir(name=None):
    """Directory of a model, by default of the one that P1 measures."""
    return inter(f"models/{name or SETTINGS['p1']['model']}")


def workload_inputs(wildcards):
    """A model with real weights reads real text; random weights read random tokens."""
    model = SETTINGS["models"][SETTINGS["p1"]["model"]]
    corpus = (
        {} if model["source"] == "random" else {"corpus": inter("corpora/long.parquet")}
    )
    return {"model": model_dir()} | corpus


def cost_contexts():
    """Prompt lengths of the cumulative cost."""
    return sorted({point["context"] for point in SETTINGS["p1"]["rounds"]["points"]})


def longest_prompt():
    """Tokens a prompt of the workload must have for every rule that cuts one from it."""
    p1 = SETTINGS["p1"]
    return max(
        *p1["profile"]["contexts"],
        *p1["prefix"]["prompts"],
        *cost_contexts(),
        p1["speed"]["prompt_tokens"],
        p1["pipeline"]["context"],
        p1["loading"]["prompt_tokens"],
        *(point["prompt_tokens"] for point in p1["peers"]["points"]),
        p1["rollouts"]["context"],
        p1["rollouts"]["checks"]["prompt_tokens"],
    )


def peer_environments():
    """Peers whose own Python is there: the comparison runs again when one is installed."""
    frameworks = SETTINGS["p1"]["peers"]["frameworks"]
    own = {name: peer["python"] for name, peer in frameworks.items() if peer["python"]}
    return [name for name, python in own.items() if (ROOT / python).is_file()]


def rollout_settings():
    """The calls that are timed, without the checks, which are another rule's."""
    settings = SETTINGS["p1"]["rollouts"]
    return {key: settings[key] for key in settings if key != "checks"}


def models_from(*sources):
    """Names of the configured models with one of these sources, as a wildcard constraint."""
    names = [
        name for name, model in SETTINGS["models"].items() if model["source"] in sources
    ]
    return "|".join(names) or "(?!)"


def runtime_settings():
    """What every rule that runs a model depends on."""
    return {key: SETTINGS[key] for key in ("device", "dtype")} | {
        "seed": SETTINGS["seed"]
    }


def threads_for_model():
    """CPU threads of a job that runs a model."""
    return SETTINGS["resources"]["threads"]


def gpus():
    """Accelerators of a job that runs a model."""
    return 1 if SETTINGS["device"] == "cuda" else 0


def stage_gpus():
    """Accelerators of a job that runs two pipeline stages."""
    return SETTINGS["p1"]["pipeline"]["gpus"] if gpus() else 0


def stage_settings(job):
    """The settings of `p1.pipeline` that one of its jobs uses, so that it reruns only for those."""
    settings, profile = SETTINGS["p1"]["pipeline"], SETTINGS["p1"]["profile"]
    shape = ["context", "generation", "sequences", "micro_batches", "chunks", "timeout"]
    if job == "rollout":
        return {
            "contexts": profile["contexts"],
            "generations": profile["generations"],
            "warmup": profile["warmup"],
            "repeats": settings["rollout_repeats"],
            "split_fraction": settings["rollout_split"],
            "chunks": settings["rollout_chunks"],
            "timeout": settings["timeout"],
        }
    own = {
        "layers": ["cost_repeats"],
        "sweep": ["split_fractions", "warmup", "repeats"],
    }
    return {key: settings[key] for key in [*shape, *own[job]]}


def anchor():
    """An earlier pipeline table to compare with; nothing where none is set."""
    return SETTINGS["p1"]["pipeline"]["anchor"] or []


def grow(base):
    """A resource that doubles with each attempt, so that a retry can succeed."""
    return lambda wildcards, attempt: base * 2 ** (attempt - 1)


@lru_cache(maxsize=1)
def history():
    """What earlier jobs of this scale took, here and on the machines under docs/measured."""
    scale, measured = SETTINGS["scale"], ROOT / "docs" / "measured"
    return read_history(scale, Path("results"), measured)


def minutes(limit):
    """Minutes of a job: by its earlier runs, or `limit` where there are none (docs/estimate.md)."""
    resources, gpu = SETTINGS["resources"], None if gpus() else False
    factor, minimum = resources["runtime_factor"], resources["runtime_minimum"]
    return lambda wildcards, attempt, rulename: runtime_minutes(
        predict(history(), "_".join([rulename, *wildcards]), rulename, gpu),
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
