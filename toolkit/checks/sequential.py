"""Tests that may be looked at as often as one likes: e-processes, whose false-alarm rate holds over all looks together.

An e-process is a wager against "nothing has changed" that starts at 1 and cannot be expected to grow while that is true;
that it ever reaches 1/a has a probability of at most a (Ville 1939; Ramdas et al., Statistical Science 38, 2023). A p-value
looked at after every batch has no such property: it alarms sooner or later.

What "unchanged" means is known only from a finite reference. So the null is not the reference's shares but every vector of
shares inside their joint confidence region, and the wager is held against the likeliest of them: a long stream does not
turn the reference's own sampling error into an alarm. Region and wager split the permitted rate between them.

Legend: B categories, k successes of n trials.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

REGION_SHARE = 0.25
PRIOR = 0.5  # Krichevsky and Trofimov's: close to the best fixed wager for every alternative


@dataclass(frozen=True, eq=False)
class Region:
    """The shares (B,) a reference leaves possible: each between `low` and `high`, together 1."""

    low_B: np.ndarray
    high_B: np.ndarray


def region(counts_B: Sequence[int], *, error: float) -> Region:
    """The joint region of a reference's shares that misses the truth with a probability of at most `error` (0..1).

    Exact (Clopper-Pearson) intervals with Bonferroni's correction.
    """
    counts = np.asarray(counts_B, float)
    total, tail = counts.sum(), error / (2 * len(counts))
    low_B = np.where(counts > 0, stats.beta.ppf(tail, np.maximum(counts, 0.5), total - counts + 1), 0.0)
    high_B = np.where(counts < total, stats.beta.ppf(1 - tail, counts + 1, np.maximum(total - counts, 0.5)), 1.0)
    return Region(low_B, high_B)


def log_e_shares(counts: ArrayLike, null: Region) -> np.ndarray:
    """Natural logarithm of the e-value (...) that counts so far (..., B) have against shares inside `null`.

    A mixture over all alternatives (Dirichlet with parameter 1/2) against the likeliest member of the null.
    """
    found = np.asarray(counts, float)
    prior = PRIOR * found.shape[-1]
    mixture = special.gammaln(prior) - special.gammaln(found.sum(axis=-1) + prior)
    mixture = mixture + (special.gammaln(found + PRIOR) - special.gammaln(PRIOR)).sum(axis=-1)
    return mixture - _largest_log_likelihood(found, null)


def log_e_rate(k: ArrayLike, n: ArrayLike, highest: float) -> np.ndarray:
    """Natural logarithm of the e-value (...) that k successes in n trials have against a rate of at most `highest` (0..1).

    A uniform mixture over the rates above it. At 1/2 it is the test of two models on the samples where they disagree.
    """
    k, n, highest = np.asarray(k), np.asarray(n), min(max(highest, 1e-12), 1 - 1e-12)
    mixture = special.betaln(k + 1, n - k + 1) + stats.beta.logsf(highest, k + 1, n - k + 1) - np.log1p(-highest)
    return mixture - k * np.log(highest) - (n - k) * np.log1p(-highest)


def highest_rate(k: int, n: int, *, error: float) -> float:
    """The exact one-sided upper bound of a rate of which k of n were seen, wrong with a probability of at most `error`."""
    return 1.0 if k >= n else float(stats.beta.ppf(1 - error, k + 1, n - k))


def _largest_log_likelihood(counts: np.ndarray, null: Region) -> np.ndarray:
    """The largest log-likelihood of counts (..., B) over the region: shares in proportion to the counts, cut at the bounds.

    The common factor is found by bisection; where even the upper bounds of all that was seen leave something over, it goes
    to categories that were not seen and changes nothing.
    """
    seen = counts > 0
    large = 1.0 / np.where(seen, counts, np.inf).min(axis=-1, initial=np.inf, keepdims=True)
    large = np.where(large > 0, large, 1.0)
    small = np.zeros_like(large)
    for _ in range(60):
        middle = (small + large) / 2
        too_large = np.clip(counts * middle, null.low_B, null.high_B).sum(axis=-1, keepdims=True) > 1
        small, large = np.where(too_large, small, middle), np.where(too_large, middle, large)
    shares = np.clip(counts * large, null.low_B, null.high_B)
    return np.where(seen, counts * np.log(np.maximum(shares, 1e-300)), 0.0).sum(axis=-1)
