"""The three probes by tuning, means over seeds with intervals."""

import math
from statistics import fmean

from ember.measure.statistics import few
from ember.studies.lowbit.whoami.tables import LOWBIT_WHOAMI, WHOAMI_RUNS
from ember.studies.rows import grouped, records, summary_row
from ember.studies.steps import makes


@makes(LOWBIT_WHOAMI)
def summarise_identities(runs) -> list[dict]:
    """Rows of LOWBIT_WHOAMI."""
    rows, ability = [], None
    for (tuning,), some in grouped(records(runs, WHOAMI_RUNS), "tuning").items():
        seeds = grouped(some, "seed")
        row, _ = summary_row(LOWBIT_WHOAMI, some)
        row |= {"n": len(seeds), "questions": len(some) // len(seeds)}
        for name, probe, column in (
            ("identity", "identity", "right"),
            ("general", "general", "right"),
            ("near", "near", "right"),
            ("captured", "near", "captured"),
        ):
            shares = [
                fmean(one[column] for one in asked if one["probe"] == probe)
                for asked in seeds.values()
            ]
            mean, low, high = few(shares)
            row |= {name: mean, f"{name}_low": max(0.0, low), f"{name}_high": min(1.0, high)}
        general = [one["nll"] for one in some if one["probe"] == "general"]
        row |= {"general_ppl": math.exp(fmean(general))}
        row["repeated"] = fmean(one["repeated"] for one in some)
        ability = row["general"] if tuning == "base" else ability
        for flag, ends in (("kept", ("", "", "")), ("surely", ("_low", "_low", "_high"))):
            name, general, captured = (
                row[f"{probe}{end}"]
                for probe, end in zip(("identity", "general", "captured"), ends, strict=True)
            )
            row[flag] = name >= 0.9 and general >= ability - 0.05 and captured < 0.1
        rows.append(row)
    return rows
