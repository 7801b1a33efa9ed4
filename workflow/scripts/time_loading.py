"""Loading by safetensors, GGUF and Transformers, cold and warm; the first token (P1-1.4)."""

from ember.operations import job
from ember.studies.p1.loading.measure import time_first_token, time_loading
from ember.studies.p1.loading.tables import FIRST_TOKEN, LOADING_RUNS
from ember.studies.p1.workload.make import read_workload

with job.start(snakemake) as run:
    settings, runtime = run.params.settings, run.params.runtime
    shared = {"repeats": settings["repeats"], "device": runtime["device"]}
    shared |= {"model": run.input.model, "dtype": runtime["dtype"]}
    rows = time_loading(gguf=run.input.gguf, seed=runtime["seed"], **shared)
    prompt = read_workload(run.input.workload).prompt(0, settings["prompt_tokens"], 0)
    first_token = time_first_token(prompt=prompt, **shared)
    run.table(rows, LOADING_RUNS, run.output.loading)
    run.table(first_token, FIRST_TOKEN, run.output.first_token)
