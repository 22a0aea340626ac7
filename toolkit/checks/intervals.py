"""Intervals and tests for two models on the same samples.

Differences are always paired: both models answer the same samples, and only the samples they disagree on say anything.
Intervals are two-sided 95%, so a limit judged by an interval's end is a one-sided test at 2.5% that a reader can repeat
with the numbers on the page. The bootstrap serves every metric; for accuracy the discordant counts alone give a closed
form, which stays honest where the bootstrap collapses to a point (few or no disagreements).

Legend: N samples, B resamples.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import cast

import numpy as np
from scipy import optimize, stats

CONFIDENCE = 0.95
NUM_RESAMPLES = 2000
MAX_UNDEFINED_SHARE = 0.05
CHUNK_CELLS = 4_000_000

Z = float(stats.norm.ppf(0.5 + CONFIDENCE / 2))
Z_POWER = float(stats.norm.ppf(0.8))

Interval = tuple[float, float]


def resamples(num_samples: int, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> Iterator[np.ndarray]:
    """Bootstrap counts in blocks of rows (b, N): how often each sample occurs in each resample; every row sums to N."""
    generator = np.random.default_rng(seed)
    rows = max(1, CHUNK_CELLS // num_samples)
    for start in range(0, num_resamples, rows):
        size = min(rows, num_resamples - start)
        drawn = generator.integers(num_samples, size=(size, num_samples))
        flat = drawn + num_samples * np.arange(size)[:, None]
        yield np.bincount(flat.ravel(), minlength=size * num_samples).reshape(size, num_samples).astype(np.float64)


def bootstrap(
    functions: Mapping[str, Callable[[np.ndarray], np.ndarray]],
    *,
    num_samples: int,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """The value of each function of weights (b, N) -> (b, ...) over the same resamples: name -> (B, ...)."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in functions}
    for weights_BN in resamples(num_samples, num_resamples=num_resamples, seed=seed):
        for name, function in functions.items():
            parts[name].append(function(weights_BN))
    return {name: np.concatenate(blocks) for name, blocks in parts.items()}


def percentile_interval(values_B: np.ndarray, *, confidence: float = CONFIDENCE) -> Interval | None:
    """The central `confidence` share of bootstrap values (percentile method, Efron 1979).

    None when the statistic is undefined (NaN) in more than 5% of the resamples.
    """
    undefined_B = np.isnan(values_B)
    if undefined_B.mean() > MAX_UNDEFINED_SHARE:
        return None
    tail = (1 - confidence) / 2
    low, high = np.quantile(values_B[~undefined_B], [tail, 1 - tail])
    return float(low), float(high)


def share_interval(count: int, num_samples: int, *, confidence: float = CONFIDENCE) -> Interval:
    """Exact (Clopper-Pearson) interval of a share; with zero of 300 the upper end is 1.2%."""
    interval = stats.binomtest(count, num_samples).proportion_ci(confidence, method="exact")
    return float(interval.low), float(interval.high)


def mcnemar_p(num_negative: int, num_positive: int) -> float:
    """Exact two-sided McNemar test that both models err equally often, from the discordant counts; 1 without any."""
    discordant = num_negative + num_positive
    return float(stats.binomtest(num_negative, discordant).pvalue) if discordant else 1.0


def accuracy_difference_interval(
    num_negative: int, num_positive: int, num_samples: int, *, confidence: float = CONFIDENCE
) -> tuple[Interval, str]:
    """Interval of accuracy(new) - accuracy(old) from the flips, and its method.

    The Wald interval for paired shares, or Tango's score interval (Statistics in Medicine 17, 1998) below 500 samples or
    25 discordant ones, where Wald is too narrow.
    """
    if num_samples < 500 or num_negative + num_positive < 25:
        return tango_interval(num_negative, num_positive, num_samples, confidence=confidence), "Tango score"
    difference = (num_positive - num_negative) / num_samples
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    half = z * paired_standard_error(num_negative, num_positive, num_samples)
    return (difference - half, difference + half), "Wald"


def paired_standard_error(num_negative: int, num_positive: int, num_samples: int) -> float:
    """Standard error of the accuracy difference of two models on the same samples."""
    variance = num_negative + num_positive - (num_negative - num_positive) ** 2 / num_samples
    return math.sqrt(variance) / num_samples


def tango_interval(num_negative: int, num_positive: int, num_samples: int, *, confidence: float = CONFIDENCE) -> Interval:
    """Tango's score interval of (positive - negative) / N: the differences that the score test does not reject."""
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    difference = (num_positive - num_negative) / num_samples

    def excess(candidate: float, target: float) -> float:
        return tango_statistic(candidate, num_negative, num_positive, num_samples) - target

    edge = 1 - 1e-9
    low = -1.0 if excess(-edge, z) <= 0 else optimize.brentq(excess, -edge, difference, args=(z,))
    high = 1.0 if excess(edge, -z) >= 0 else optimize.brentq(excess, difference, edge, args=(-z,))
    return cast(Interval, (low, high))


def tango_statistic(difference: float, num_negative: int, num_positive: int, num_samples: int) -> float:
    """The score statistic (standard normal under the null) of the hypothesis that the accuracy gain is `difference`.

    The variance uses the share of negative flips that is most likely under the hypothesis (Tango 1998, equations 6-8).
    """
    a = 2 * num_samples
    b = -num_positive - num_negative + (2 * num_samples - num_positive + num_negative) * difference
    c = -num_negative * difference * (1 - difference)
    negative_share = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = num_samples * max(0.0, 2 * negative_share + difference * (1 - difference))
    distance = num_positive - num_negative - num_samples * difference
    if variance <= 0:
        return 0.0 if distance == 0 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def samples_to_decide(value: float, interval: Interval, limit: float, num_samples: int) -> int | None:
    """About how many samples put the whole interval on one side of `limit`, if the value stays; None when it lies on it.

    Interval widths shrink with the square root of the number of samples.
    """
    distance = abs(value - limit)
    half = value - interval[0] if value >= limit else interval[1] - value
    if distance == 0 or half <= 0:
        return None
    needed = num_samples * (half / distance) ** 2
    return math.ceil(needed) if needed < 1e9 else None


def smallest_margin(interval: Interval) -> float:
    """The smallest non-inferiority margin that this many samples decide with 80% power if there is no true difference."""
    standard_error = (interval[1] - interval[0]) / (2 * Z)
    return (Z + Z_POWER) * standard_error
