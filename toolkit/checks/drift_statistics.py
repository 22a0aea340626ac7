"""Tests for shifts in numbers and in counts, and what to do with many p-values at once.

Legend: M reference samples, N new ones, B categories.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

NUM_TABLES = 1999
MIN_EXPECTED = 5.0


@dataclass(frozen=True)
class Shift:
    """How one number moved: KS distance 0..1 and its p-value, both means, and the move in reference standard deviations."""

    name: str
    ks: float
    p: float
    before: float
    after: float
    moved: float


@dataclass(frozen=True)
class CountShift:
    """How shares moved: chi-square p-value, PSI less what chance alone gives (>= 0), and the largest change of a share."""

    p: float
    psi: float
    largest_change: float
    method: str


def shift(name: str, reference_M: np.ndarray, new_N: np.ndarray) -> Shift:
    """The two-sample Kolmogorov-Smirnov test and the size of the move. Values that are not finite are left out."""
    reference_M, new_N = reference_M[np.isfinite(reference_M)], new_N[np.isfinite(new_N)]
    if not len(reference_M) or not len(new_N):
        return Shift(name, 0.0, 1.0, 0.0, 0.0, 0.0)
    found: Any = stats.ks_2samp(reference_M, new_N, method="asymp" if min(len(reference_M), len(new_N)) > 50 else "auto")
    before, after = float(reference_M.mean()), float(new_N.mean())
    deviation = float(reference_M.std())
    moved = (after - before) / deviation if deviation > 1e-12 else float(np.sign(round(after - before, 9)) * 10)
    return Shift(name, float(found.statistic), float(min(1.0, found.pvalue)), before, after, moved)


def count_shift(reference_B: Sequence[int], new_B: Sequence[int], *, seed: int = 0) -> CountShift:
    """The chi-square test of equal shares; where a cell expects fewer than 5, by 1,999 random tables with these margins.

    PSI is symmetric in its logarithm and large by chance in small samples, (B - 1)(1/M + 1/N) on average: that much is
    subtracted. Shares are smoothed by half a count, so that an empty category is no infinity.
    """
    table = np.array([reference_B, new_B], float)
    table = table[:, table.sum(axis=0) > 0]
    sizes = table.sum(axis=1)
    if table.shape[1] < 2 or not sizes.all():
        return CountShift(1.0, 0.0, 0.0, "one category")
    expected = np.outer(sizes, table.sum(axis=0)) / table.sum()
    statistic = float(((table - expected) ** 2 / expected).sum())
    if expected.min() >= MIN_EXPECTED:
        p, method = float(stats.chi2.sf(statistic, table.shape[1] - 1)), "chi-square"
    else:
        p, method = _table_p(table, expected, statistic, seed), f"chi-square, {NUM_TABLES} random tables"
    shares = (table + 0.5) / (table + 0.5).sum(axis=1, keepdims=True)
    psi = float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())
    by_chance = (table.shape[1] - 1) * float((1 / sizes).sum())
    change = float(np.abs(table[1] / sizes[1] - table[0] / sizes[0]).max())
    return CountShift(p, max(0.0, psi - by_chance), change, method)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p-values (1979): whatever their dependence, the chance of any false alarm at level a is at most a."""
    ordered = sorted(p_values, key=lambda name: p_values[name])
    adjusted, highest = {}, 0.0
    for place, name in enumerate(ordered):
        highest = max(highest, min(1.0, (len(ordered) - place) * p_values[name]))
        adjusted[name] = highest
    return adjusted


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values that hold the share of false discoveries (Benjamini and Hochberg 1995); the smallest is Simes' p."""
    return stats.false_discovery_control(list(p_values)).tolist() if p_values else []


def _table_p(table: np.ndarray, expected: np.ndarray, statistic: float, seed: int) -> float:
    law = stats.random_table(table.sum(axis=1).astype(int), table.sum(axis=0).astype(int))
    drawn = law.rvs(NUM_TABLES, random_state=np.random.default_rng(seed))
    values = ((drawn - expected) ** 2 / expected).sum(axis=(1, 2))
    return float((1 + (values >= statistic - 1e-9).sum()) / (1 + NUM_TABLES))
