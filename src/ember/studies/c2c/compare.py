"""Points compared with the FP16 channel on the same questions, and with each other.

Questions about one passage are not independent, so that passages are resampled and their signs
flipped, not questions. Of several worlds (each with models and a fuser of its own) all passages
count alike; how far worlds differ stands beside.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ember.measure.statistics import bootstrap, estimate, holm, paired
from ember.records.errors import EmberError
from ember.records.schema import MEASURED_ON
from ember.studies.c2c.point_tables import C2C_POINTS, POINT
from ember.studies.rows import grouped, records, with_ends

FULL = "fp16"
MEANS = ("tokens", "passage_tokens", "estimated_bytes", "measured_bytes", "charged_bytes")
MEANS += ("header_bytes", "channel_ms", "fuse_ms")


class BadComparison(EmberError):
    """Points that cannot be compared; the message says why."""


@dataclass(frozen=True)
class Answers:
    """A point on the questions of a stratum, over worlds."""

    rows: Sequence[Mapping]  # of C2C_POINTS

    @cached_property
    def correct(self) -> np.ndarray:
        return np.concatenate([row["correct"] for row in self.rows]).astype(float)

    @cached_property
    def key(self) -> tuple:
        """What was asked, to be sure that two points answer the same."""
        return tuple((row["world"], row["stratum"], tuple(row["items"])) for row in self.rows)

    @cached_property
    def passages(self) -> np.ndarray:
        """Number of each question's passage, over worlds."""
        pairs = [(row["world"], group) for row in self.rows for group in row["groups"]]
        return np.unique(np.array(pairs), axis=0, return_inverse=True)[1].reshape(-1)

    def mean(self, name: str) -> float:
        """Of a column, over questions."""
        weights = [len(row["items"]) for row in self.rows]
        return float(np.average([row[name] for row in self.rows], weights=weights))

    def by_world(self) -> list[float]:
        """Accuracy of each world."""
        worlds = grouped(self.rows, "world").values()
        return [float(np.mean(np.concatenate([one["correct"] for one in some]))) for some in worlds]


class Comparison:
    """Tables C2C_POINTS (one or more a family, of all worlds), by family, point and stratum."""

    def __init__(self, runs: Iterable, strata: Sequence[str], seed: int, resamples: int):
        rows = records(runs, C2C_POINTS)
        self.rng, self.resamples = np.random.default_rng(seed), resamples
        self.points: dict[tuple[str, str], dict[str, Answers]] = {}
        for (family, point), some in grouped(rows, "family", "point").items():
            found = {name: [r for r in some if name in ("all", r["stratum"])] for name in strata}
            self.points[family, point] = {k: Answers(v) for k, v in found.items() if v}
        missing = [one for one in strata if not any(one in of for of in self.points.values())]
        if strata[0] in missing:
            raise BadComparison(
                f"no question is of the stratum {strata[0]!r}, which claims are about.\n"
                "Set c2c.points.strata to those of the questions, the main one first."
            )
        self.strata = [one for one in strata if one not in missing]

    def difference(
        self, ours: np.ndarray, theirs: np.ndarray, of: Answers
    ) -> tuple[tuple[float, float, float], float]:
        """Mean of ours - theirs over questions with its interval, and p, by passage."""
        sums = [np.bincount(of.passages, weights=x) for x in (ours, theirs)]
        counts = np.bincount(of.passages).astype(float)
        found = self._ratio(np.stack([sums[0] - sums[1], counts], 1))
        return found, paired(*sums, self.rng, self.resamples)["p"]

    def accuracy(self, of: Answers) -> tuple[float, float, float]:
        """With its interval."""
        sums = np.bincount(of.passages, weights=of.correct)
        return self._ratio(np.stack([sums, np.bincount(of.passages)], 1).astype(float))

    def _ratio(self, sums: np.ndarray) -> tuple[float, float, float]:
        def ratio(some: np.ndarray) -> np.ndarray:
            total = some.sum(1)
            return total[:, 0] / np.maximum(total[:, 1], 1)

        return estimate(bootstrap(sums, self.rng, self.resamples, ratio))

    def rows(self, family: str | None, margin: float) -> list[dict]:
        """Columns COMPARED of every point of a family (None: of all) and stratum."""
        found = []
        for (of_family, _), strata in self.points.items():
            if family in (None, of_family):
                found += [
                    self._row(of_family, stratum, strata[stratum], margin)
                    for stratum in self.strata
                    if stratum in strata
                ]
        adjust(found, "p", "p_holm")
        return found

    def _row(self, family: str, stratum: str, ours: Answers, margin: float) -> dict:
        full = self.points[family, FULL][stratum]
        if full.key != ours.key:
            raise BadComparison(
                f"{ours.rows[0]['point']} and {FULL} of {family} answered other questions.\n"
                "Measure them again, in one job."
            )
        first, worlds = ours.rows[0], ours.by_world()
        accuracy = self.accuracy(ours)
        to_full, p = self.difference(ours.correct, full.correct, ours)
        means = {name: ours.mean(name) for name in MEANS}
        measured = means["measured_bytes"]
        values = first["elements"]
        schemes = {row["schemes"] for row in ours.rows}
        return {
            "family": family,
            **{column.name: first[column.name] for column in POINT},
            "schemes": first["schemes"] if len(schemes) == 1 else "other ones in each world",
            "stratum": stratum,
            "questions": len(ours.correct),
            "seeds": len(worlds),
            "limited": any(row["limited"] for row in ours.rows),
            **with_ends("accuracy", accuracy),
            "accuracy_min": min(worlds) if len(worlds) > 1 else None,
            "accuracy_max": max(worlds) if len(worlds) > 1 else None,
            **with_ends("difference", to_full),
            "p": p,
            "margin": margin,
            "non_inferior": to_full[1] > -margin,
            **{name: value for name, value in means.items() if name != "charged_bytes"},
            "drift": (measured - means["estimated_bytes"]) / measured if measured else 0.0,
            "bytes_share": measured / full.mean("measured_bytes"),
            "effective_bits": 8 * measured / (values * means["passage_tokens"]),
            "sent_bits": 8 * measured / (values * means["tokens"]) if means["tokens"] else None,
            **{column.name: first[column.name] for column in MEASURED_ON},
        }


def adjust(rows: Sequence[dict], name: str, adjusted: str) -> None:
    """Holm over the rows of a stratum that have a p."""
    for stratum in {row.get("stratum") for row in rows}:
        tested = [
            row for row in rows if row.get("stratum") == stratum and row.get(name) is not None
        ]
        for row, value in zip(tested, holm([row[name] for row in tested]), strict=True):
            row[adjusted] = value


def at_equal_bytes(ladder: Sequence[Answers], size: float) -> np.ndarray | None:
    """Right answers by question, of a ladder of points at `size` bytes on average.

    Between two neighbours it is their mixture, which takes so many bytes; None outside of them.
    """
    steps = sorted(ladder, key=lambda one: one.mean("measured_bytes"))
    sizes = [one.mean("measured_bytes") for one in steps]
    if not steps or not sizes[0] <= size <= sizes[-1]:
        return None
    above = next(n for n, one in enumerate(sizes) if one >= size)
    if sizes[above] == size:
        return steps[above].correct
    share = (size - sizes[above - 1]) / (sizes[above] - sizes[above - 1])
    return (1 - share) * steps[above - 1].correct + share * steps[above].correct


def verdict(low: float, high: float) -> str:
    """What an interval of a difference says."""
    return "better" if low > 0 else "worse" if high < 0 else "no difference"
