"""How well a classifier does, as numbers that can be resampled.

Every metric is a function of predictions and a matrix of sample weights, one row a resample, so the point estimate (one
row of ones) and 2,000 bootstrap resamples are the same code and a few matrix products; a library metric called once a
resample takes minutes instead. The values are held against scikit-learn in the tests.

Legend: N samples, K classes, B resamples.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse, special

from toolkit.errors import InputRefused

NUM_ECE_BINS = 15


@dataclass(frozen=True, eq=False)
class Predictions:
    """What one model said about N samples: natural-log probabilities (N, K) and the true classes (N,), 0..K-1."""

    log_probabilities_NK: np.ndarray
    targets_N: np.ndarray

    @classmethod
    def from_logits(cls, logits_NK: np.ndarray, targets_N: np.ndarray) -> "Predictions":
        """Softmax in float64. Raises `InputRefused` for outputs that are not finite: no metric of them means anything."""
        logits_NK = np.asarray(logits_NK, np.float64)
        num_bad = int((~np.isfinite(logits_NK)).any(axis=1).sum())
        if num_bad:
            raise InputRefused(
                f"the model's outputs are not finite on {num_bad} of {len(logits_NK)} images: it is broken (NaN weights?). "
                "Train or export it again."
            )
        return cls(special.log_softmax(logits_NK, axis=1), np.asarray(targets_N, np.int64))

    def __len__(self) -> int:
        return len(self.targets_N)

    def take(self, indices: np.ndarray) -> "Predictions":
        """The predictions at `indices` (integers, or a boolean mask of N)."""
        return Predictions(self.log_probabilities_NK[indices], self.targets_N[indices])

    @property
    def num_classes(self) -> int:
        return self.log_probabilities_NK.shape[1]

    @functools.cached_property
    def probabilities_NK(self) -> np.ndarray:  # noqa: N802
        return np.exp(self.log_probabilities_NK)

    @functools.cached_property
    def classes_N(self) -> np.ndarray:  # noqa: N802
        """The predicted classes, 0..K-1."""
        return self.log_probabilities_NK.argmax(axis=1)

    @functools.cached_property
    def confidences_N(self) -> np.ndarray:  # noqa: N802
        """The probability of the predicted class, 0..1."""
        return self.probabilities_NK.max(axis=1)

    @functools.cached_property
    def correct_N(self) -> np.ndarray:  # noqa: N802
        return self.classes_N == self.targets_N


Metric = Callable[[Predictions, np.ndarray], np.ndarray]


def accuracy(predictions: Predictions, weights_BN: np.ndarray) -> np.ndarray:
    """Share of right answers (B,), 0..1."""
    return weights_BN @ predictions.correct_N / weights_BN.sum(axis=1)


def recalls(predictions: Predictions, weights_BN: np.ndarray) -> np.ndarray:
    """Share of each class's samples that are found (B, K), 0..1; NaN where a class has no sample."""
    support_BK = _class_sums(weights_BN, predictions.targets_N, predictions.num_classes)
    hits_BK = _class_sums(weights_BN * predictions.correct_N, predictions.targets_N, predictions.num_classes)
    return _ratio(hits_BK, support_BK)


def precisions(predictions: Predictions, weights_BN: np.ndarray) -> np.ndarray:
    """Share of each class's predictions that are right (B, K), 0..1; NaN where a class is never predicted."""
    claimed_BK = _class_sums(weights_BN, predictions.classes_N, predictions.num_classes)
    hits_BK = _class_sums(weights_BN * predictions.correct_N, predictions.classes_N, predictions.num_classes)
    return _ratio(hits_BK, claimed_BK)


def balanced_accuracy(predictions: Predictions, weights_BN: np.ndarray) -> np.ndarray:
    """Mean recall of the classes that occur (B,), 0..1."""
    return np.nanmean(recalls(predictions, weights_BN), axis=1)


def macro_f1(predictions: Predictions, weights_BN: np.ndarray) -> np.ndarray:
    """Mean F1 of the classes that occur or are predicted (B,), 0..1."""
    num_classes = predictions.num_classes
    hits_BK = _class_sums(weights_BN * predictions.correct_N, predictions.targets_N, num_classes)
    support_BK = _class_sums(weights_BN, predictions.targets_N, num_classes)
    claimed_BK = _class_sums(weights_BN, predictions.classes_N, num_classes)
    return np.nanmean(_ratio(2 * hits_BK, support_BK + claimed_BK), axis=1)


def nll(predictions: Predictions, weights_BN: np.ndarray) -> np.ndarray:
    """Mean negative log-likelihood of the true class (B,), nats, >= 0."""
    losses_N = -predictions.log_probabilities_NK[np.arange(len(predictions)), predictions.targets_N]
    return weights_BN @ losses_N / weights_BN.sum(axis=1)


def brier(predictions: Predictions, weights_BN: np.ndarray) -> np.ndarray:
    """Mean squared distance of the probabilities from the truth, summed over classes (B,), 0..2 (Brier 1950)."""
    squares_N = (predictions.probabilities_NK**2).sum(axis=1)
    true_N = predictions.probabilities_NK[np.arange(len(predictions)), predictions.targets_N]
    return weights_BN @ (squares_N - 2 * true_N + 1) / weights_BN.sum(axis=1)


def ece(predictions: Predictions, weights_BN: np.ndarray) -> np.ndarray:
    """Expected calibration error of the top label over 15 equal-width bins (B,), 0..1 (Guo et al., ICML 2017)."""
    bins_N = confidence_bins(predictions)
    gap_N = predictions.confidences_N - predictions.correct_N
    gaps_BM = _class_sums(weights_BN * gap_N, bins_N, NUM_ECE_BINS)
    return np.abs(gaps_BM).sum(axis=1) / weights_BN.sum(axis=1)


def confidence_bins(predictions: Predictions) -> np.ndarray:
    """The bin of each confidence: `NUM_ECE_BINS` of equal width over 0..1, each open below and closed above."""
    return np.clip(np.ceil(predictions.confidences_N * NUM_ECE_BINS).astype(int) - 1, 0, NUM_ECE_BINS - 1)


def roc_auc(predictions: Predictions, weights_BN: np.ndarray) -> np.ndarray:
    """Area under the ROC curve (B,), 0..1: of class 1 for two classes, else the mean over one-versus-rest curves.

    Classes without positives or negatives in a resample are left out of its mean; NaN when none is left.
    """
    classes = [1] if predictions.num_classes == 2 else range(predictions.num_classes)
    areas_BC = np.stack([_auc(predictions, k, weights_BN) for k in classes], axis=1)
    defined_BC = ~np.isnan(areas_BC)
    return _ratio(np.where(defined_BC, areas_BC, 0).sum(axis=1), defined_BC.sum(axis=1))


def _auc(predictions: Predictions, positive_class: int, weights_BN: np.ndarray) -> np.ndarray:
    """Weighted Mann-Whitney statistic: a positive beats the negatives below it and half of those tied with it."""
    scores_N = predictions.log_probabilities_NK[:, positive_class]
    order_N = np.argsort(scores_N, kind="stable")
    sorted_N = scores_N[order_N]
    positive_N = predictions.targets_N[order_N] == positive_class
    weights_BN = weights_BN[:, order_N]
    negatives_BN = np.cumsum(weights_BN * ~positive_N, axis=1)
    negatives_BN = np.concatenate([np.zeros((len(weights_BN), 1)), negatives_BN], axis=1)
    below_BN = negatives_BN[:, np.searchsorted(sorted_N, sorted_N[positive_N], side="left")]
    upto_BN = negatives_BN[:, np.searchsorted(sorted_N, sorted_N[positive_N], side="right")]
    positives_BN = weights_BN[:, positive_N]
    wins_B = (positives_BN * (below_BN + upto_BN)).sum(axis=1) / 2
    return _ratio(wins_B, positives_BN.sum(axis=1) * negatives_BN[:, -1])


METRICS: Mapping[str, Metric] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
    "roc_auc": roc_auc,
    "nll": nll,
    "brier": brier,
    "ece": ece,
}


def confusion(predictions: Predictions) -> np.ndarray:
    """Counts (K, K): row = true class, column = predicted class."""
    num_classes = predictions.num_classes
    flat = predictions.targets_N * num_classes + predictions.classes_N
    return np.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes)


def reliability(predictions: Predictions) -> list[dict[str, float]]:
    """The bins behind `ece` that hold samples: bounds, count, mean confidence, accuracy."""
    bins_N = confidence_bins(predictions)
    return [
        {
            "lower": index / NUM_ECE_BINS,
            "upper": (index + 1) / NUM_ECE_BINS,
            "count": int((bins_N == index).sum()),
            "confidence": float(predictions.confidences_N[bins_N == index].mean()),
            "accuracy": float(predictions.correct_N[bins_N == index].mean()),
        }
        for index in range(NUM_ECE_BINS)
        if (bins_N == index).any()
    ]


def roc_curve(predictions: Predictions, positive_class: int = 1, *, max_points: int = 200) -> list[tuple[float, float]]:
    """(false-positive rate, true-positive rate) of one class from (0, 0) to (1, 1); empty without positives or negatives."""
    positive_N = predictions.targets_N == positive_class
    if positive_N.all() or not positive_N.any():
        return []
    order_N = np.argsort(-predictions.log_probabilities_NK[:, positive_class], kind="stable")
    scores_N = predictions.log_probabilities_NK[order_N, positive_class]
    ends = np.flatnonzero(np.append(np.diff(scores_N) != 0, True))
    true = np.cumsum(positive_N[order_N])[ends] / positive_N.sum()
    false = np.cumsum(~positive_N[order_N])[ends] / (~positive_N).sum()
    chosen = np.unique(np.linspace(0, len(ends) - 1, max_points).round().astype(int))
    points: Sequence[tuple[float, float]] = [(round(float(false[i]), 5), round(float(true[i]), 5)) for i in chosen]
    return [(0.0, 0.0), *points]


def _class_sums(weights_BN: np.ndarray, classes_N: np.ndarray, num_classes: int) -> np.ndarray:
    """The weights summed within each class."""
    samples = np.arange(len(classes_N))
    membership_NK = sparse.csr_array((np.ones(len(classes_N)), (samples, classes_N)), shape=(len(classes_N), num_classes))
    return weights_BN @ membership_NK


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Elementwise quotient; NaN where the denominator is zero."""
    return np.divide(numerator, denominator, out=np.full(np.shape(numerator), np.nan), where=np.asarray(denominator) > 0)
