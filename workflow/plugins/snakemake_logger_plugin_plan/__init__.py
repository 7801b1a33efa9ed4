"""Snakemake logger plugin: the jobs of a dry run as JSON lines, for programs to read.

`ember.operations.plan` starts a dry run with it (`--logger plan --logger-plan-file FILE`). It
stands outside `src`, so that ordinary runs neither find nor load it.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent
from snakemake_interface_logger_plugins.settings import LogHandlerSettingsBase


@dataclass
class LogHandlerSettings(LogHandlerSettingsBase):
    """Where the jobs go."""

    file: str = field(default="", metadata={"help": "file of JSON lines", "required": True})


class LogHandler(LogHandlerBase):
    """Writes one line for every planned job."""

    writes_to_stream = False
    writes_to_file = True
    has_filter = True
    has_formatter = True
    needs_rulegraph = False

    def __post_init__(self) -> None:
        self.baseFilename = str(self.settings.file)
        Path(self.baseFilename).write_text("")

    def emit(self, record) -> None:
        if getattr(record, "event", None) != LogEvent.JOB_INFO:
            return
        resources = {k: v for k, v in record.resources.items() if not k.startswith("_")}
        job = {
            "rule": record.rule_name,
            "wildcards": dict(record.wildcards or {}),
            "inputs": list(record.input),
            "outputs": list(record.output),
            "benchmark": record.benchmark,
            "threads": record.threads,
            "resources": resources,
            "reason": record.reason,
        }
        with open(self.baseFilename, "a") as file:
            file.write(json.dumps(job, default=str) + "\n")
