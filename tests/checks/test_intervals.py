"""Intervals hold what they promise: checked against brute force, libraries and simulation."""

import numpy as np
import pytest
from scipy import optimize, stats

from toolkit.checks import intervals


def constrained_likelihood_statistic(difference: float, negative: int, positive: int, num_samples: int) -> float:
    """Tango's statistic with the nuisance share maximised numerically instead of by the closed form."""

    def minus_log_likelihood(share: float) -> float:
        rest = 1 - 2 * share - difference
        terms = ((negative, share), (positive, share + difference), (num_samples - negative - positive, rest))
        return -sum(count * np.log(max(p, 1e-300)) for count, p in terms if count)

    low, high = max(0.0, -difference), (1 - difference) / 2
    best = optimize.minimize_scalar(
        minus_log_likelihood, bounds=(low + 1e-12, high - 1e-12), method="bounded", options={"xatol": 1e-12}
    ).x
    variance = num_samples * (2 * best + difference * (1 - difference))
    return (positive - negative - num_samples * difference) / np.sqrt(variance)


@pytest.mark.parametrize(("negative", "positive", "num_samples"), [(8, 3, 100), (2, 9, 60), (20, 20, 400), (1, 0, 30)])
@pytest.mark.parametrize("difference", [-0.1, -0.02, 0.03, 0.15])
def test_tango_statistic_equals_numerical_maximum_likelihood(
    difference: float, negative: int, positive: int, num_samples: int
) -> None:
    closed = intervals.tango_statistic(difference, negative, positive, num_samples)
    assert closed == pytest.approx(constrained_likelihood_statistic(difference, negative, positive, num_samples), abs=1e-4)


@pytest.mark.parametrize(("negative", "positive", "num_samples"), [(8, 3, 100), (0, 0, 300), (0, 12, 60), (30, 30, 400)])
def test_tango_interval_ends_are_where_the_test_stops_rejecting(negative: int, positive: int, num_samples: int) -> None:
    low, high = intervals.tango_interval(negative, positive, num_samples)
    assert intervals.tango_statistic(low, negative, positive, num_samples) == pytest.approx(intervals.Z, abs=1e-6)
    assert intervals.tango_statistic(high, negative, positive, num_samples) == pytest.approx(-intervals.Z, abs=1e-6)
    assert low <= (positive - negative) / num_samples <= high


def test_wald_and_tango_agree_on_large_sets_and_the_method_is_named() -> None:
    (low, high), method = intervals.accuracy_difference_interval(200, 260, 5000)
    assert method == "Wald"
    np.testing.assert_allclose((low, high), intervals.tango_interval(200, 260, 5000), atol=2e-4)
    assert intervals.accuracy_difference_interval(8, 3, 100)[1] == "Tango score"


def test_non_inferiority_at_the_margin_errs_at_its_nominal_rate() -> None:
    """True loss equal to the margin: a 95% interval lets at most about 2.5% of such models pass."""
    generator = np.random.default_rng(0)
    margin, num_samples = 0.02, 1000
    draws = generator.multinomial(num_samples, [0.06, 0.04, 0.9], size=4000)
    passed = [intervals.accuracy_difference_interval(int(n), int(p), num_samples)[0][0] > -margin for n, p, _ in draws]
    assert 0.015 < np.mean(passed) < 0.035


def test_tango_interval_covers_on_small_sets() -> None:
    generator = np.random.default_rng(1)
    draws = generator.multinomial(60, [0.1, 0.05, 0.85], size=800)
    covered = [low <= -0.05 <= high for low, high in (intervals.tango_interval(int(n), int(p), 60) for n, p, _ in draws)]
    assert 0.93 < np.mean(covered) < 0.98


def test_mcnemar_is_the_exact_binomial_test_and_keeps_its_level() -> None:
    assert intervals.mcnemar_p(0, 0) == 1.0
    assert intervals.mcnemar_p(1, 9) == pytest.approx(2 * stats.binom.cdf(1, 10, 0.5))
    generator = np.random.default_rng(2)
    discordant = generator.binomial(400, 0.1, size=2000)
    halves = generator.binomial(discordant, 0.5)
    p_values = [intervals.mcnemar_p(int(h), int(d - h)) for h, d in zip(halves, discordant, strict=True)]
    assert np.mean(np.array(p_values) <= 0.05) <= 0.05


def test_resamples_keep_their_size_and_repeat_with_the_seed() -> None:
    first = np.concatenate(list(intervals.resamples(50, num_resamples=100, seed=3)))
    again = np.concatenate(list(intervals.resamples(50, num_resamples=100, seed=3)))
    assert first.shape == (100, 50)
    assert (first.sum(axis=1) == 50).all()
    np.testing.assert_array_equal(first, again)


def test_blocks_of_resamples_cover_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "CHUNK_CELLS", 700)
    blocks = list(intervals.resamples(50, num_resamples=100))
    assert [len(block) for block in blocks] == [14] * 7 + [2]


def test_bootstrap_interval_of_a_mean_matches_scipy_and_theory() -> None:
    values_N = np.random.default_rng(4).normal(size=200)
    ours = intervals.bootstrap({"mean": lambda w: w @ values_N / w.sum(axis=1)}, num_samples=200)["mean"]
    low, high = intervals.percentile_interval(ours) or (0, 0)
    other = stats.bootstrap((values_N,), np.mean, n_resamples=2000, method="percentile", rng=5).confidence_interval
    assert low == pytest.approx(other.low, abs=0.02)
    assert high == pytest.approx(other.high, abs=0.02)


def test_a_statistic_that_is_often_undefined_has_no_interval() -> None:
    values_B = np.ones(100)
    values_B[:10] = np.nan
    assert intervals.percentile_interval(values_B) is None
    values_B[2:10] = 1.0
    assert intervals.percentile_interval(values_B) == (1.0, 1.0)


def test_zero_events_bound_the_rate_exactly() -> None:
    low, high = intervals.share_interval(0, 300)
    assert low == 0.0
    assert high == pytest.approx(1 - 0.025 ** (1 / 300))


def test_sample_size_that_decides_does_decide() -> None:
    """Repeating the same shares on as many samples as promised brings the interval to the limit."""
    (low, high), _ = intervals.accuracy_difference_interval(50, 55, 1000)
    needed = intervals.samples_to_decide(0.005, (low, high), -0.01, 1000)
    assert needed is not None
    scale = needed / 1000
    (larger_low, _), _ = intervals.accuracy_difference_interval(round(50 * scale), round(55 * scale), needed)
    assert larger_low == pytest.approx(-0.01, abs=5e-4)
    assert intervals.samples_to_decide(-0.01, (low, high), -0.01, 1000) is None


def test_smallest_margin_is_decided_four_times_in_five() -> None:
    generator = np.random.default_rng(6)
    interval, _ = intervals.accuracy_difference_interval(50, 50, 1000)
    margin = intervals.smallest_margin(interval)
    draws = generator.multinomial(1000, [0.05, 0.05, 0.9], size=2000)
    decided = [intervals.accuracy_difference_interval(int(n), int(p), 1000)[0][0] > -margin for n, p, _ in draws]
    assert 0.75 < np.mean(decided) < 0.85
