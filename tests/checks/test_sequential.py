"""e-processes: their formulas, their false-alarm rate over thousands of looks, and how soon they see a change."""

import numpy as np
import pytest
from scipy import integrate, optimize, special, stats

from toolkit.checks.sequential import Region, highest_rate, log_e_rate, log_e_shares, region

ALPHA = 0.05
LOOKS = 2000


def test_rate_test_is_the_mixture_over_all_higher_rates_and_at_one_half_the_test_of_discordant_pairs() -> None:
    k, n, highest = 17, 40, 0.3
    mixture = integrate.quad(lambda p: p**k * (1 - p) ** (n - k), highest, 1)[0] / (1 - highest)
    assert log_e_rate(k, n, highest) == pytest.approx(np.log(mixture) - k * np.log(highest) - (n - k) * np.log(1 - highest))
    published = 2 ** (n + 1) * special.beta(k + 1, n - k + 1) * (1 - special.betainc(k + 1, n - k + 1, 0.5))
    assert np.exp(log_e_rate(k, n, 0.5)) == pytest.approx(published)


def test_shares_are_held_against_the_likeliest_member_of_the_null() -> None:
    null = Region(np.array([0.5, 0.1, 0.05]), np.array([0.8, 0.3, 0.2]))
    for counts in ([3, 4, 9], [50, 1, 0], [0, 0, 5], [10, 10, 10]):

        def loss(p: np.ndarray, counts: list[int] = counts) -> float:
            return -float((np.array(counts) * np.log(p)).sum())

        best = optimize.minimize(
            loss,
            [0.65, 0.2, 0.15],
            bounds=list(zip(null.low_B, null.high_B, strict=True)),
            constraints={"type": "eq", "fun": lambda p: p.sum() - 1},
            method="SLSQP",
            options={"ftol": 1e-12},
        )
        n = sum(counts)
        mixture = (
            special.gammaln(1.5)
            - special.gammaln(n + 1.5)
            + (special.gammaln(np.array(counts) + 0.5) - special.gammaln(0.5)).sum()
        )
        assert log_e_shares(counts, null) == pytest.approx(mixture + best.fun, abs=1e-4)
    assert log_e_shares([0, 0, 0], null) == 0.0


def test_an_e_value_is_worth_at_most_one_under_the_null() -> None:
    null = Region(np.array([0.4, 0.3]), np.array([0.6, 0.6]))
    for share in (0.4, 0.55, 0.6):
        counts = np.arange(26)
        values = np.exp(log_e_shares(np.stack([counts, 25 - counts], axis=1), null))
        assert (stats.binom(25, share).pmf(counts) * values).sum() <= 1 + 1e-9
    for rate in (0.05, 0.2, 0.3):
        values = np.exp(log_e_rate(np.arange(26), 25, 0.3))
        assert (stats.binom(25, rate).pmf(np.arange(26)) * values).sum() <= 1 + 1e-9


def test_region_holds_the_truth_as_often_as_promised() -> None:
    generator, shares = np.random.default_rng(0), np.array([0.6, 0.3, 0.08, 0.02])
    missed = 0
    for _ in range(400):
        found = region(generator.multinomial(150, shares).tolist(), error=0.1)
        missed += bool((shares < found.low_B).any() or (shares > found.high_B).any())
    assert missed / 400 <= 0.1
    assert highest_rate(0, 300, error=0.05) == pytest.approx(0.00993, abs=1e-4)
    assert highest_rate(5, 5, error=0.05) == 1.0


def first_alarm(shares: np.ndarray, reference: list[int], generator: np.random.Generator) -> int | None:
    """The look, of 2,000, at which a stream in batches of 5 is called changed."""
    null = region(reference, error=0.25 * ALPHA)
    counts = generator.multinomial(5, shares, size=LOOKS).cumsum(axis=0)
    beyond = np.flatnonzero(log_e_shares(counts, null) >= np.log(1 / (0.75 * ALPHA)))
    return int(beyond[0]) if len(beyond) else None


def test_looking_two_thousand_times_raises_no_more_false_alarms_than_promised() -> None:
    generator, shares = np.random.default_rng(1), np.array([0.5, 0.3, 0.2])
    alarms = sum(first_alarm(shares, generator.multinomial(400, shares).tolist(), generator) is not None for _ in range(200))
    assert alarms / 200 <= ALPHA
    naive = 0
    for _ in range(60):
        counts = generator.multinomial(5, shares, size=LOOKS).cumsum(axis=0)[9::40]
        totals = counts.sum(axis=1, keepdims=True)
        chi_square = ((counts - totals * shares) ** 2 / (totals * shares)).sum(axis=1)
        naive += bool((stats.chi2.sf(chi_square, 2) <= ALPHA).any())
    assert naive / 60 > 0.15, "the test that this replaces: a p-value looked at after every batch"


def test_a_shift_of_twenty_points_is_seen_within_two_hundred_samples() -> None:
    generator = np.random.default_rng(2)
    reference = generator.multinomial(1000, [0.5, 0.3, 0.2]).tolist()
    delays = [first_alarm(np.array([0.3, 0.5, 0.2]), reference, generator) for _ in range(20)]
    assert all(delay is not None for delay in delays)
    assert np.median([5 * (delay or 0) for delay in delays]) <= 200


def test_rising_errors_are_seen_and_steady_ones_are_not() -> None:
    generator, alarms = np.random.default_rng(3), 0
    for _ in range(200):
        highest = highest_rate(int(generator.binomial(300, 0.1)), 300, error=0.25 * ALPHA)
        wrong = generator.binomial(1, 0.1, size=LOOKS).cumsum()
        alarms += bool((log_e_rate(wrong, np.arange(1, LOOKS + 1), highest) >= np.log(1 / (0.75 * ALPHA))).any())
    assert alarms / 200 <= ALPHA
    assert log_e_rate(60, 200, highest_rate(30, 300, error=0.01)) > np.log(100)
