"""Slices are tested together: a real loss is found, many slices without one stay quiet."""

import numpy as np
import pytest
from scipy import stats

from toolkit.checks.flips import Flips
from toolkit.checks.metrics import Predictions
from toolkit.checks.regression_slices import holm, worse_p, worse_slices


def flips(num_negative: int, num_positive: int, num_samples: int) -> Flips:
    old, new = np.zeros(num_samples, int), np.zeros(num_samples, int)
    new[:num_negative] = 1
    old[num_negative : num_negative + num_positive] = 1

    def predictions(classes_N: np.ndarray) -> Predictions:
        return Predictions.from_logits(np.eye(2)[classes_N], np.zeros(num_samples, int))

    return Flips(predictions(old), predictions(new))


def test_holm_is_the_step_down_correction() -> None:
    corrected = holm({"a": 0.01, "b": 0.04, "c": 0.03})
    assert corrected == {"a": pytest.approx(0.03), "c": pytest.approx(0.06), "b": pytest.approx(0.06)}
    assert holm({}) == {}


def test_one_sided_test_is_the_binomial_tail() -> None:
    assert worse_p(9, 1) == pytest.approx(stats.binom.sf(8, 10, 0.5))
    assert worse_p(0, 0) == 1.0


def test_a_worse_slice_is_counted_and_a_small_one_only_named() -> None:
    counts, listed = worse_slices({"good": flips(5, 6, 300), "bad": flips(40, 10, 300), "tiny": flips(9, 0, 50)})
    assert {m.name: m.value for m in counts} == {"worse_slices": 1.0, "untested_slices": 1.0}
    assert [entry["result"] for entry in listed] == ["not shown worse", "worse", "too few images"]
    assert worse_slices({})[0][0].value == 0


def test_twenty_slices_without_change_rarely_alarm() -> None:
    generator = np.random.default_rng(0)
    alarms = 0
    for _ in range(300):
        discordant = generator.binomial(400, 0.1, size=20)
        negative = generator.binomial(discordant, 0.5)
        raw = {str(i): worse_p(int(k), int(n - k)) for i, (k, n) in enumerate(zip(negative, discordant, strict=True))}
        alarms += min(holm(raw).values()) <= 0.05
    assert alarms / 300 <= 0.05
