"""Shift tests and corrections against scipy, and the rates the corrections promise."""

import itertools

import numpy as np
import pytest
from scipy import stats

from toolkit.checks.drift_statistics import benjamini_hochberg, count_shift, holm, shift


def test_shift_is_scipys_ks_and_the_move_in_standard_deviations() -> None:
    generator = np.random.default_rng(0)
    before, after = generator.normal(10, 2, 300), generator.normal(11, 2, 200)
    found = shift("brightness", before, after)
    expected = stats.ks_2samp(before, after, method="asymp")
    assert (found.ks, found.p) == pytest.approx((expected.statistic, expected.pvalue))
    assert found.moved == pytest.approx((after.mean() - before.mean()) / before.std())


def test_a_constant_that_stays_is_no_shift_and_one_that_changes_is() -> None:
    assert shift("size", np.full(80, 16.5), np.full(70, 16.5)).p == 1.0
    assert shift("size", np.full(80, 16.5), np.full(70, 14.0)).ks == 1.0
    assert shift("size", np.full(80, np.nan), np.ones(70)).p == 1.0


def test_count_shift_is_the_chi_square_test_and_in_small_tables_the_exact_law() -> None:
    found = count_shift([120, 80, 50], [60, 70, 40])
    assert found.p == pytest.approx(stats.chi2_contingency([[120, 80, 50], [60, 70, 40]], correction=False)[1])
    small = count_shift([6, 2], [1, 5])
    corners = np.arange(1, 8)  # with these margins one cell says all: 8 - 1 values are possible
    chi_square = np.array([stats.chi2_contingency([[k, 8 - k], [7 - k, k - 1]], correction=False)[0] for k in corners])
    weights = stats.hypergeom(14, 7, 8).pmf(corners)
    exact = weights[chi_square >= chi_square[corners == 6] - 1e-9].sum()
    assert "random tables" in small.method
    assert small.p == pytest.approx(exact, abs=0.02)


def test_psi_without_drift_is_near_zero_where_the_usual_one_is_not() -> None:
    generator = np.random.default_rng(0)
    shares = np.full(10, 0.1)
    usual, corrected = [], []
    for _ in range(200):
        a, b = generator.multinomial(100, shares), generator.multinomial(100, shares)
        p, q = (a + 0.5) / 105, (b + 0.5) / 105
        usual.append(((q - p) * np.log(q / p)).sum())
        corrected.append(count_shift(a.tolist(), b.tolist()).psi)
    assert np.mean(np.array(usual) > 0.1) > 0.7
    assert np.mean(corrected) < 0.05
    drifted = count_shift([500, 500], [800, 200]).psi
    assert drifted == pytest.approx(0.3 * np.log(1.6) + 0.3 * np.log(2.5), rel=0.02)


def test_holm_rejects_what_the_closed_test_with_bonferroni_rejects() -> None:
    generator = np.random.default_rng(0)
    for _ in range(30):
        p_values = {name: float(p) for name, p in zip("abcd", generator.uniform(0, 0.08, 4), strict=True)}
        adjusted = holm(p_values)
        for name in p_values:
            subsets = [s for size in range(1, 5) for s in itertools.combinations("abcd", size) if name in s]
            closed = max(min(1.0, len(s) * min(p_values[member] for member in s)) for s in subsets)
            assert adjusted[name] == pytest.approx(closed)


def test_benjamini_hochberg_holds_the_share_of_false_discoveries() -> None:
    generator = np.random.default_rng(0)
    shares = []
    for _ in range(300):
        p_values = np.concatenate([generator.uniform(size=15), stats.norm.sf(generator.normal(3, 1, 5))])
        found = np.array(benjamini_hochberg(p_values.tolist())) <= 0.1
        shares.append(found[:15].sum() / max(1, found.sum()))
    assert np.mean(shares) <= 0.1
    assert benjamini_hochberg([]) == []
