"""Summaries, bootstrap intervals, paired tests and corrections for many tests: once for all.

Everything random is drawn from the generator handed in, so that a table repeats for its seed.
"""

import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

import numpy as np

from ember.records.errors import EmberError

# With fewer runs a 10th or 90th percentile is an interpolated extreme.
PERCENTILES_FROM = 10
# Sign flips of up to so many differences are all tried; of more, a sample is.
_ALL_FLIPS = 14


class BadSamples(EmberError):
    """Samples that have no statistic: none at all, not finite, or not in pairs."""


def summarise(samples: Sequence[float]) -> dict:
    """n, median, mean, std (n - 1), cv (std / mean), p10, p50, p90, min and max of the samples.

    std and cv are None for a single sample, cv also for a mean of zero: they are unknown there.
    Percentiles interpolate linearly, like numpy's default; p10 and p90 of fewer than ten samples
    are None, and `ends` gives the range instead.
    """
    values = sorted(float(sample) for sample in samples)
    if not values:
        raise BadSamples("no samples to summarise\nrecord at least one")
    if not all(map(math.isfinite, values)):
        raise BadSamples(f"samples hold NaN or infinity: {values}\nfind out what was measured")
    mean = statistics.fmean(values)
    std = statistics.stdev(values) if len(values) > 1 else None
    enough = len(values) >= PERCENTILES_FROM
    return {
        "n": len(values),
        "median": percentile(values, 50),
        "mean": mean,
        "std": std,
        "cv": std / mean if std is not None and mean else None,
        "p10": percentile(values, 10) if enough else None,
        "p50": percentile(values, 50),
        "p90": percentile(values, 90) if enough else None,
        "min": values[0],
        "max": values[-1],
    }


def ends(row: Mapping, name: str) -> tuple[float, float]:
    """Both ends of the error bar of column `name` in a summary's row of n runs.

    The range of fewer than ten runs, p10 to p90 from ten on: `ends_in_words` says which.
    """
    low, high = ("p10", "p90") if row["n"] >= PERCENTILES_FROM else ("min", "max")
    return row[f"{name}_{low}"], row[f"{name}_{high}"]


def ends_in_words(counts: Collection[int]) -> str:
    """What error bars by `ends` span, for the numbers of runs of the rows drawn."""
    said = []
    for words, enough in (("least to greatest", False), ("p10 to p90", True)):
        some = sorted({int(n) for n in counts if n > 1 and (n >= PERCENTILES_FROM) == enough})
        if some:
            said.append(f"{words} of n = {' or '.join(map(str, some))} runs")
    return ", ".join(said) or "a single run"


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Percentile of ascending values, interpolated linearly between neighbours."""
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


_median = partial(np.median, axis=1)


def bootstrap(
    samples,
    rng: np.random.Generator,
    resamples: int,
    statistic: Callable[[np.ndarray], np.ndarray] = _median,
) -> np.ndarray:
    """(1 + resamples, ...): the statistic of the samples, then of each resample of them.

    samples: (n, ...), resampled along the first axis, so that what belongs to one item stays
    together. statistic: takes (m, n, ...) and reduces the axis of n; by default the median.
    """
    samples = np.asarray(samples)
    if not len(samples):
        raise BadSamples("no samples to resample\nrecord at least one")
    picks = rng.integers(len(samples), size=(resamples, len(samples)))
    return np.concatenate([statistic(samples[None]), statistic(samples[picks])])


def interval(draws: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of what `bootstrap` gives (1 + resamples,); holds the estimate."""
    low, high = np.percentile(draws[1:], [2.5, 97.5])
    return float(min(low, draws[0])), float(max(high, draws[0]))


def estimate(draws: np.ndarray) -> tuple[float, float, float]:
    """The estimate of what `bootstrap` gives, and its 95 % interval."""
    return float(draws[0]), *interval(draws)


def mean(samples, rng: np.random.Generator, resamples: int) -> tuple[float, float, float]:
    """Mean of the samples (n,), and its 95 % interval by bootstrap."""
    return estimate(bootstrap(samples, rng, resamples, partial(np.mean, axis=1)))


def few(samples: Sequence[float]) -> tuple[float, float, float]:
    """Mean of a few independent samples, such as one a seed, and its 95 % interval by Student's t:
    resampling three values says too little. One sample has an infinite interval."""
    values = np.asarray(samples, float)
    if not len(values):
        raise BadSamples("no samples to take the mean of\nrecord at least one")
    if len(values) == 1:
        return float(values[0]), -math.inf, math.inf
    quantile = _T_QUANTILES[min(len(values) - 1, len(_T_QUANTILES)) - 1]
    half = quantile * float(values.std(ddof=1)) / math.sqrt(len(values))
    return float(values.mean()), float(values.mean()) - half, float(values.mean()) + half


# 97.5 % points of Student's t with 1, 2, … degrees of freedom.
_T_QUANTILES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)


def paired(ours, theirs, rng: np.random.Generator, resamples: int = 10_000) -> dict:
    """Two subjects on the same items: n, difference (mean of ours - theirs), low, high and p.

    low and high bound the difference by bootstrap over items. p is that of the two-sided sign-flip
    test, whose null hypothesis is that either subject could have given either value: exact for few
    items that differ, else from `resamples` random flips. For right and wrong answers it is
    McNemar's exact test.
    """
    ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
    if ours.shape != theirs.shape or ours.ndim != 1 or not len(ours):
        raise BadSamples(
            f"samples of shapes {ours.shape} and {theirs.shape} are no pairs\n"
            "measure both subjects on the same items, at least one"
        )
    differences = ours - theirs
    difference, low, high = mean(differences, rng, resamples)
    return {
        "n": len(differences),
        "difference": difference,
        "low": low,
        "high": high,
        "p": _sign_flip_p(differences[differences != 0], rng, resamples),
    }


def _sign_flip_p(differences: np.ndarray, rng: np.random.Generator, resamples: int) -> float:
    """Share of the sign flips whose sum is at least as far from zero as the one found."""
    count = len(differences)
    exact = count <= _ALL_FLIPS
    if exact:
        flips = np.arange(2**count)[:, None] >> np.arange(count) & 1
    else:
        flips = rng.integers(2, size=(resamples, count))
    found = abs(differences.sum())
    sums = np.abs((1 - 2 * flips) @ differences)
    as_far = int((sums >= found - 1e-9 * np.abs(differences).sum()).sum())
    # What was found is one of the flips; of a sample it is the one that is always there.
    return as_far / 2**count if exact else (1 + as_far) / (1 + resamples)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: those below alpha are significant together."""
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = least
    return adjusted


def leading_equal(tokens: Sequence[int], others: Sequence[int]) -> float:
    """Fraction of `tokens` before the first that differs from `others`."""
    pairs = zip(tokens, others, strict=False)
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(tokens), len(others)))
    return same / len(tokens)
