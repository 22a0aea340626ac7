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


def log_e_shares(counts_B: Sequence[int], null: Region) -> float:
    """Natural logarithm of the e-value that counts so far have against shares inside `null`.

    A mixture over all alternatives (Dirichlet with parameter 1/2) against the likeliest member of the null.
    """
    counts = np.asarray(counts_B, float)
    num = len(counts)
    mixture = special.gammaln(num * PRIOR) - special.gammaln(counts.sum() + num * PRIOR)
    mixture += (special.gammaln(counts + PRIOR) - special.gammaln(PRIOR)).sum()
    return float(mixture - _largest_log_likelihood(counts, null))


def log_e_rate(k: int, n: int, highest: float) -> float:
    """Natural logarithm of the e-value that k successes in n trials have against a rate of at most `highest` (0..1).

    A uniform mixture over the rates above it. At 1/2 it is the test of two models on the samples where they disagree.
    """
    highest = min(max(highest, 1e-12), 1 - 1e-12)
    mixture = special.betaln(k + 1, n - k + 1) + stats.beta.logsf(highest, k + 1, n - k + 1) - np.log1p(-highest)
    return float(mixture - k * np.log(highest) - (n - k) * np.log1p(-highest))


def highest_rate(k: int, n: int, *, error: float) -> float:
    """The exact one-sided upper bound of a rate of which k of n were seen, wrong with a probability of at most `error`."""
    return 1.0 if k >= n else float(stats.beta.ppf(1 - error, k + 1, n - k))


def _largest_log_likelihood(counts: np.ndarray, null: Region) -> float:
    """The largest log-likelihood of the counts over the region: shares in proportion to the counts, cut at the bounds."""
    seen = counts > 0
    if not seen.any():
        return 0.0

    def shares(scale: float) -> np.ndarray:
        return np.clip(counts * scale, null.low_B, null.high_B)

    small, large = 0.0, 1.0 / counts[seen].min()
    if shares(large).sum() > 1:
        for _ in range(100):
            middle = (small + large) / 2
            small, large = (small, middle) if shares(middle).sum() > 1 else (middle, large)
    return float((counts[seen] * np.log(np.maximum(shares(large)[seen], 1e-300))).sum())
