"""Loss measured and estimated: against scipy and statsmodels' formula, with known truths, and its rate of false alarms."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from toolkit.checks.drift_performance import accuracy_change, estimated_change, metric_change, probe
from toolkit.checks.metrics import Predictions, balanced_accuracy, roc_auc


def answers(num: int, *, seed: int, sharpness: float = 2.0, truth_sharpness: float | None = None) -> Predictions:
    """Two classes whose truth is drawn from the model's own probability: perfectly calibrated unless told otherwise."""
    generator = np.random.default_rng(seed)
    score = generator.normal(0, sharpness, num)
    truth = score if truth_sharpness is None else score * truth_sharpness
    targets = (generator.uniform(size=num) < 1 / (1 + np.exp(-truth))).astype(int)
    return Predictions.from_logits(np.stack([np.zeros(num), score], axis=1), targets)


def exactly(right: int, wrong: int) -> Predictions:
    targets = np.repeat([1, 0], [right, wrong])
    return Predictions.from_logits(np.tile([0.0, 1.0], (right + wrong, 1)), targets)


def test_accuracy_change_is_fishers_test_with_newcombes_interval() -> None:
    change = accuracy_change(exactly(56, 14), exactly(48, 32))
    assert change.p == pytest.approx(stats.fisher_exact([[48, 32], [56, 14]], alternative="less")[1])
    low, high = change.interval
    assert (low, high) == pytest.approx(
        (-0.3339, -0.0524), abs=5e-4
    )  # Newcombe 1998, table II, (a), method 10, with the sign turned


def test_metric_change_reports_the_metric_and_calls_a_loss_a_loss() -> None:
    good, bad = answers(400, seed=0, sharpness=3), answers(400, seed=1, sharpness=3, truth_sharpness=0.1)
    change = metric_change(roc_auc, good, bad)
    assert change is not None
    assert change.after == pytest.approx(roc_auc_score(bad.targets_N, bad.log_probabilities_NK[:, 1]))
    assert change.p <= 0.002
    assert change.interval[1] < 0
    one_class = bad.take(bad.targets_N == 1)
    assert metric_change(roc_auc, good, one_class) is None


def test_no_loss_is_called_no_more_often_than_promised() -> None:
    p_values = []
    for seed in range(150):
        pair = answers(120, seed=2 * seed), answers(100, seed=2 * seed + 1)
        change = metric_change(balanced_accuracy, *pair, seed=seed)
        assert change is not None
        p_values.append([accuracy_change(*pair).p, change.p])
    assert (np.array(p_values) <= 0.05).mean(axis=0).max() <= 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / 150)


def test_estimate_follows_a_shift_of_inputs_and_is_blind_to_one_of_labels() -> None:
    reference, harder = answers(2000, seed=0, sharpness=3), answers(1500, seed=1, sharpness=1)
    change, atc = estimated_change(reference, harder)
    true_change = harder.correct_N.mean() - reference.correct_N.mean()
    assert true_change < -0.1
    assert change.interval[0] <= true_change <= change.interval[1]
    assert change.after - change.before == pytest.approx(true_change, abs=0.04)
    assert atc < change.before - 0.1
    relabelled = answers(1500, seed=2, sharpness=3, truth_sharpness=0.1)
    assert relabelled.correct_N.mean() < 0.7
    blind, _ = estimated_change(reference, relabelled)
    assert abs(blind.after - blind.before) < 0.03


def test_probe_says_what_the_features_can_carry() -> None:
    generator = np.random.default_rng(0)
    targets = generator.integers(2, size=300)
    useful = generator.normal(0, 1, (300, 4)) + targets[:, None]
    assert (probe(useful, targets) or 0) > 0.85
    assert (probe(generator.normal(0, 1, (300, 4)), targets) or 1) < 0.6
    assert probe(useful, np.zeros(300, int)) is None
    assert probe(useful[:30], np.repeat([0, 1], [25, 5])) is None
