"""A small table and a chain of products to trace."""

import pytest

from ember.records.provenance import collect
from ember.records.schema import EVIDENCE, Column, Schema

TIMES = Schema(
    "times",
    "Prefill times of a toy",
    (
        Column("context", "int", "tokens", "prompt length"),
        Column("prefill_ms", "float", "ms", "median of the prefill"),
        Column("note", "str", nullable=True),
        EVIDENCE,
    ),
    key=("context",),
)


@pytest.fixture
def times():
    return TIMES


@pytest.fixture
def rows():
    return [
        {"context": 512, "prefill_ms": 12.25, "note": None, "evidence": "measured"},
        {"context": 1024, "prefill_ms": 30.5, "note": "warm", "evidence": "measured"},
    ]


@pytest.fixture
def made():
    """Provenance of a rule's job, with inputs and outputs that exist."""

    def provenance(rule, inputs, outputs, **changes):
        facts = {
            "params": {"repeats": 2},
            "config": {"scale": "smoke"},
            "seeds": {"seed": 0},
            "code": "c0de" * 8,
            "threads": 1,
            "started": "2026-01-02T03:04:05+00:00",
            "seconds": 1.5,
            "hardware": {"cpu": "Toy CPU", "cores": 2, "memory_bytes": 8 * 10**9, "gpus": []},
        }
        return collect(rule=rule, inputs=inputs, outputs=outputs, **(facts | changes))

    return provenance
