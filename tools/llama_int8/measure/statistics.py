"""Paired statistics: what a difference between two precisions can and cannot show."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class PairedDifference:
    """Mean of paired differences, its bootstrap interval, and what the sample could have shown."""

    mean: float
    low: float
    high: float
    confidence: float
    smallest_detectable: float
    n: int


def paired_bootstrap(
    first: np.ndarray,
    second: np.ndarray,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> PairedDifference:
    """Interval for the mean of `second - first` over independent units (windows, documents).

    `first`, `second`: shape (n,), one value per unit, in the same order. Percentile bootstrap
    (Efron and Tibshirani, 1993, chapter 13). `smallest_detectable` is the true difference that a
    two-sided test at this confidence would find with 80 % power: (z_conf + 0.84) standard errors.
    Raises ValueError for shapes that differ, fewer than 2 units, or values that are not finite.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.shape != second.shape or first.ndim != 1 or first.size < 2:
        raise ValueError(
            f"shapes are {first.shape} and {second.shape}; expected two equal ones (n,), n >= 2"
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1")
    differences = second - first
    if not np.isfinite(differences).all():
        raise ValueError("the values contain NaN or infinity; a mean of them says nothing")
    n = differences.size
    low, high = stats.bootstrap(
        (differences,),
        np.mean,
        n_resamples=resamples,
        # All at once would take resamples x n numbers, 1.6 GB for n = 10,000.
        batch=1,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    z = NormalDist().inv_cdf((1 + confidence) / 2) + NormalDist().inv_cdf(0.8)
    error = differences.std(ddof=1) / np.sqrt(n)
    return PairedDifference(
        float(differences.mean()), float(low), float(high), confidence, float(z * error), n
    )


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p-value that one of two tests on the same items is right more often.

    `only_first`, `only_second`: items that only one answers right. If neither is better, each
    such item falls to either side with probability 1/2 (McNemar, 1947; in its exact, binomial
    form). Raises ValueError for a negative count.
    """
    if min(only_first, only_second) < 0:
        raise ValueError(f"counts are {only_first} and {only_second}; they cannot be negative")
    n = only_first + only_second
    return float(stats.binomtest(min(only_first, only_second), n).pvalue) if n else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for being several: the smallest times their number, the next times one less.

    No corrected value is below one of a smaller p-value, none is above 1 (Holm, 1979, Scand. J.
    Statist. 6:65).
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    for place, n in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[n]))
        corrected[n] = largest
    return corrected


def smallest_detectable_change(n: int, changed: int, confidence: float = 0.95) -> float:
    """The true difference of two shares that a test of the same n items would find at 80 % power.

    `changed`: items that only one answered right; their share (with two added to either side, so
    that none seen does not mean none possible) is the noise. Solves Connor's equation (1987,
    Biometrics 43:207) for the difference. Raises ValueError unless 0 <= changed <= n, n >= 1.
    """
    if n < 1 or not 0 <= changed <= n:
        raise ValueError(f"{changed} changed of {n}; expected 0 to n, and n at least 1")
    z = NormalDist().inv_cdf((1 + confidence) / 2), NormalDist().inv_cdf(0.8)
    share = (changed + 2) / (n + 4)
    low, high = 0.0, 1.0
    for _ in range(60):
        d = (low + high) / 2
        noise = max(share, d)  # at least the difference itself has changed
        wanted = (z[0] * noise**0.5 + z[1] * (noise - d * d) ** 0.5) ** 2 / (d * d)
        low, high = (d, high) if wanted > n else (low, d)
    return high


def proportion_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval for a proportion: it stays within 0 and 1, at 0 or n successes too.

    Wilson, 1927, J. Am. Stat. Assoc. 22:209. Raises ValueError unless 0 <= successes <= n, n >= 1.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}; expected 0 to n, and n at least 1")
    test = stats.binomtest(successes, n)
    low, high = test.proportion_ci(confidence_level=confidence, method="wilson")
    # Exact at the ends, where rounding would leave the share itself outside.
    return (float(low) if successes else 0.0), (float(high) if successes < n else 1.0)


def mean_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of a few independent values and its interval by Student's t: (mean, low, high).

    Three values leave two degrees of freedom, and 4.3 standard errors instead of 1.96.
    Raises ValueError for fewer than 2 values.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or values.size < 2:
        raise ValueError(f"values have shape {values.shape}; expected (n,) with n >= 2")
    mean, error = values.mean(), values.std(ddof=1) / values.size**0.5
    half = stats.t.ppf((1 + confidence) / 2, values.size - 1) * error
    return float(mean), float(mean - half), float(mean + half)


@dataclass(frozen=True)
class Spread:
    """Median and quartiles, and where `spread` made it the ends of all values."""

    median: float
    low: float
    high: float
    n: int
    least: float | None = field(default=None, compare=False)
    largest: float | None = field(default=None, compare=False)


def spread(values: np.ndarray) -> Spread:
    """Median with first and third quartile. Raises ValueError for an empty array."""
    values = np.asarray(values, np.float64)
    if values.size == 0:
        raise ValueError("no values: a median needs at least one")
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    ends = float(values.min()), float(values.max())
    return Spread(float(median), float(low), float(high), values.size, *ends)
