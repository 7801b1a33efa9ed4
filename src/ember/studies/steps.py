"""The steps of a study: functions that rules name, marked with the tables they make or read.

A rule says `step("p1.prefix.measure.sweep_prefix")`; `workflow/scripts/study.py` and `plot.py` find
the function by that name and call it with those of the job's files and parameters that it asks for.
"""

import inspect
from collections.abc import Callable
from importlib import import_module

from ember.records.schema import Schema


def makes(*schemas: Schema):
    """Marks a function that returns rows of these tables, one for each Parquet file of its rule."""

    def mark(function: Callable) -> Callable:
        function.makes = schemas
        return function

    return mark


def reads(**schemas: Schema):
    """Marks a function that draws the tables given to it as data frames under these names."""

    def mark(function: Callable) -> Callable:
        function.reads = schemas
        return function

    return mark


def find(name: str) -> Callable:
    """The function of a step: its module below `ember.studies`, and its own name."""
    module, _, function = name.rpartition(".")
    return getattr(import_module(f"ember.studies.{module}"), function)


def arguments(function: Callable, job) -> dict:
    """What a step is called with: its job's files, parameters and threads, by the names it has.

    The mappings `settings` and `runtime` are handed over key by key, each key an argument, unless
    the function has an argument of that name.
    """
    wanted = inspect.signature(function).parameters
    given = {"threads": job.threads}
    for named in (job.output, job.input, job.params):
        given |= dict(named.items())
    found = {name: given[name] for name in wanted if name in given}
    for group in ("settings", "runtime"):
        if group not in wanted:
            found |= given.get(group, {})
    return found
