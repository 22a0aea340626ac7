"""The resampled metrics are the libraries' metrics."""

import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from torchmetrics.functional.classification import multiclass_calibration_error

from toolkit.checks.metrics import (
    METRICS,
    Predictions,
    confusion,
    precisions,
    recalls,
    reliability,
    roc_curve,
)
from toolkit.errors import InputRefused

ONES = np.ones((1, 300))


def make(num_classes: int, *, seed: int = 0, decimals: int = 8) -> Predictions:
    """300 predictions, right more often than not; few `decimals` give tied scores."""
    generator = np.random.default_rng(seed)
    targets_N = generator.integers(num_classes, size=300)
    logits_NK = generator.normal(size=(300, num_classes))
    logits_NK[np.arange(300), targets_N] += 1
    return Predictions.from_logits(logits_NK.round(decimals), targets_N)


def by_library(name: str, p: Predictions, weights_N: np.ndarray) -> float:
    labels = np.arange(p.num_classes)
    multi = {"multi_class": "ovr", "average": "macro"} if p.num_classes > 2 else {}
    scores = p.probabilities_NK if p.num_classes > 2 else p.probabilities_NK[:, 1]
    functions = {
        "accuracy": lambda: reference.accuracy_score(p.targets_N, p.classes_N, sample_weight=weights_N),
        "balanced_accuracy": lambda: reference.balanced_accuracy_score(p.targets_N, p.classes_N, sample_weight=weights_N),
        "macro_f1": lambda: reference.f1_score(p.targets_N, p.classes_N, average="macro", sample_weight=weights_N),
        "roc_auc": lambda: reference.roc_auc_score(p.targets_N, scores, sample_weight=weights_N, **multi),
        "nll": lambda: reference.log_loss(p.targets_N, p.probabilities_NK, sample_weight=weights_N, labels=labels),
        "brier": lambda: reference.brier_score_loss(
            p.targets_N, p.probabilities_NK, sample_weight=weights_N, labels=labels, scale_by_half=False
        ),
    }
    return float(functions[name]())


@pytest.mark.parametrize("decimals", [8, 0], ids=["distinct", "tied"])
@pytest.mark.parametrize("num_classes", [2, 5])
@pytest.mark.parametrize("name", sorted(set(METRICS) - {"ece"}))
def test_metric_equals_scikit_learn_with_and_without_weights(name: str, num_classes: int, decimals: int) -> None:
    predictions = make(num_classes, decimals=decimals)
    weights_BN = np.stack([np.ones(300), np.random.default_rng(1).multinomial(300, np.full(300, 1 / 300))]).astype(float)
    values = METRICS[name](predictions, weights_BN)
    for value, weights_N in zip(values, weights_BN, strict=True):
        used = weights_N > 0
        tolerance = 1e-4 if name == "roc_auc" and decimals == 0 else 1e-12  # rounding in the softmax breaks a few exact ties
        assert value == pytest.approx(by_library(name, predictions.take(used), weights_N[used]), abs=tolerance)


@pytest.mark.parametrize("num_classes", [2, 5])
def test_calibration_error_equals_torchmetrics_and_its_own_bins(num_classes: int) -> None:
    predictions = make(num_classes)
    expected = multiclass_calibration_error(
        torch.tensor(predictions.probabilities_NK), torch.tensor(predictions.targets_N), num_classes, n_bins=15, norm="l1"
    )
    value = METRICS["ece"](predictions, ONES)[0]
    assert value == pytest.approx(float(expected), abs=1e-6)
    from_bins = sum(b["count"] * abs(b["confidence"] - b["accuracy"]) for b in reliability(predictions)) / 300
    assert value == pytest.approx(from_bins)


def test_recall_and_precision_per_label_equal_scikit_learn() -> None:
    predictions = make(5)
    expected = reference.precision_recall_fscore_support(predictions.targets_N, predictions.classes_N)
    np.testing.assert_allclose(precisions(predictions, ONES)[0], expected[0])
    np.testing.assert_allclose(recalls(predictions, ONES)[0], expected[1])


def test_confusion_and_roc_curve_equal_scikit_learn() -> None:
    predictions = make(2)
    np.testing.assert_array_equal(
        confusion(predictions), reference.confusion_matrix(predictions.targets_N, predictions.classes_N)
    )
    points = np.array(roc_curve(predictions, max_points=400))
    assert np.trapezoid(points[:, 1], points[:, 0]) == pytest.approx(METRICS["roc_auc"](predictions, ONES)[0], abs=1e-4)
    several = make(3)
    points = np.array(roc_curve(several, 2, max_points=400))
    area = reference.roc_auc_score(several.targets_N == 2, several.log_probabilities_NK[:, 2])
    assert np.trapezoid(points[:, 1], points[:, 0]) == pytest.approx(area, abs=1e-4)
    assert roc_curve(several.take(several.targets_N == 2), 2) == []


def test_a_class_without_samples_is_left_out_and_an_undefined_curve_is_nan() -> None:
    predictions = make(3)
    only_two = predictions.take(predictions.targets_N < 2)
    ones = np.ones((1, len(only_two)))
    assert np.isfinite(METRICS["balanced_accuracy"](only_two, ones)[0])
    assert np.isnan(recalls(only_two, ones)[0, 2])
    only_one = make(2).take(make(2).targets_N == 1)
    assert np.isnan(METRICS["roc_auc"](only_one, np.ones((1, len(only_one))))[0])


def test_saturated_logits_keep_finite_losses() -> None:
    predictions = Predictions.from_logits(np.array([[800.0, -800.0], [-800.0, 800.0]]), np.array([0, 0]))
    assert METRICS["nll"](predictions, np.ones((1, 2)))[0] == pytest.approx(800.0)


def test_outputs_that_are_not_finite_are_refused_with_their_count() -> None:
    logits_NK = np.zeros((4, 2))
    logits_NK[2, 1] = np.nan
    with pytest.raises(InputRefused, match="not finite on 1 of 4"):
        Predictions.from_logits(logits_NK, np.zeros(4, int))
