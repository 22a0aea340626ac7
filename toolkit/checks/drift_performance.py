"""Is the model still as good? Measured where the new images have labels, estimated from its confidence where they have none.

Measured: accuracy by Fisher's exact test with Newcombe's interval, balanced accuracy and ROC-AUC by permuting which set each
sample belongs to. Estimated: the mean of a confidence calibrated on the reference (average confidence, as in Guillory et
al., ICCV 2021, with isotonic calibration), and ATC, the share of answers above the confidence that as many reference
answers exceed as were right (Garg et al., ICLR 2022). An estimate believes the model: it cannot see labels that changed
their meaning, and on images far from the reference it is too hopeful.

Legend: M reference samples, N new ones, K classes, P components, B permutations or resamples.
"""

import functools
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from toolkit.checks.drift_embedding import NUM_PERMUTATIONS
from toolkit.checks.intervals import Interval, Z, bootstrap, percentile_interval
from toolkit.checks.metrics import Metric, Predictions

NUM_REFITS = 100
NUM_FOLDS = 5


@dataclass(frozen=True)
class Change:
    """A score on the reference and on the new data, new - reference with its 95% interval, and the p of a loss."""

    before: float
    after: float
    interval: Interval
    p: float = 1.0


def accuracy_change(reference: Predictions, new: Predictions) -> Change:
    """Accuracy on both, the difference with Newcombe's interval (Statistics in Medicine 17, 1998), Fisher's one-sided p."""
    hits, sizes = [int(part.correct_N.sum()) for part in (reference, new)], [len(reference), len(new)]
    before, after = hits[0] / sizes[0], hits[1] / sizes[1]
    (low_m, high_m), (low_n, high_n) = (_wilson(h, n) for h, n in zip(hits, sizes, strict=True))
    difference = after - before
    low = difference - np.hypot(after - low_n, high_m - before)
    high = difference + np.hypot(high_n - after, before - low_m)
    table = [[hits[1], sizes[1] - hits[1]], [hits[0], sizes[0] - hits[0]]]
    fisher: Any = stats.fisher_exact(table, alternative="less")
    return Change(before, after, (float(low), float(high)), float(fisher.pvalue))


def metric_change(
    metric: Metric, reference: Predictions, new: Predictions, *, num_permutations: int = NUM_PERMUTATIONS, seed: int = 0
) -> Change | None:
    """A metric on both with a bootstrap interval of the difference, and the p of a loss by permutation.

    None where the metric is undefined on either side (one class only).
    """
    before, after = (float(metric(part, np.ones((1, len(part))))[0]) for part in (reference, new))
    if not np.isfinite([before, after]).all():
        return None
    parts = [functools.partial(metric, part) for part in (reference, new)]
    sizes = (len(reference), len(new))
    spread = [
        bootstrap({"": part}, num_samples=n, seed=seed + i)[""] for i, (part, n) in enumerate(zip(parts, sizes, strict=True))
    ]
    interval = percentile_interval(spread[1] - spread[0]) or (-1.0, 1.0)
    pooled = Predictions(
        np.concatenate([reference.log_probabilities_NK, new.log_probabilities_NK]),
        np.concatenate([reference.targets_N, new.targets_N]),
    )
    real = np.repeat([0.0, 1.0], [len(reference), len(new)])
    drawn = np.random.default_rng(seed).permuted(np.tile(real, (num_permutations, 1)), axis=1)
    new_BN = np.concatenate([real[None], drawn])
    loss_B = metric(pooled, 1 - new_BN) - metric(pooled, new_BN)
    return Change(before, after, interval, float((np.nan_to_num(loss_B, nan=1.0) >= loss_B[0] - 1e-12).mean()))


def estimated_change(reference: Predictions, new: Predictions, *, seed: int = 0) -> tuple[Change, float]:
    """Accuracy on the reference and as estimated on `new` from its confidence alone, and what ATC estimates.

    The interval of the change resamples both sets and fits the calibration anew each time.
    """
    generator = np.random.default_rng(seed)
    sure_M, right_M, sure_N = reference.confidences_N, reference.correct_N.astype(float), new.confidences_N
    changes = []
    for _ in range(NUM_REFITS):
        rows = generator.integers(len(sure_M), size=len(sure_M))
        drawn_N = sure_N[generator.integers(len(sure_N), size=len(sure_N))]
        changes.append(_calibrated(sure_M[rows], right_M[rows], drawn_N).mean() - right_M[rows].mean())
    before, after = float(right_M.mean()), float(_calibrated(sure_M, right_M, sure_N).mean())
    low, high = np.quantile(changes, [0.025, 0.975])
    threshold = np.quantile(sure_M, 1 - before) if 0 < before < 1 else -np.inf if before == 1 else np.inf
    return Change(before, after, (float(low), float(high))), float((sure_N > threshold).mean())


def probe(embeddings_NP: np.ndarray, targets_N: np.ndarray) -> float | None:
    """Balanced accuracy of a logistic regression on the model's own features, cross-validated: what a new head could reach.

    None where a class has fewer than 10 samples, or there is one class only.
    """
    counts = np.bincount(targets_N)
    counts = counts[counts > 0]
    if len(counts) < 2 or counts.min() < 2 * NUM_FOLDS:
        return None
    model = LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000)
    folds = StratifiedKFold(NUM_FOLDS, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fit that stops early is still a probe
        answers = cross_val_predict(model, embeddings_NP, targets_N, cv=folds)
    return float(balanced_accuracy_score(targets_N, answers))


def _calibrated(sure_M: np.ndarray, right_M: np.ndarray, sure_N: np.ndarray) -> np.ndarray:
    return IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(sure_M, right_M).predict(sure_N)


def _wilson(hits: int, num: int) -> Interval:
    centre = (hits + Z * Z / 2) / (num + Z * Z)
    half = Z / (num + Z * Z) * np.sqrt(hits * (num - hits) / num + Z * Z / 4)
    return float(centre - half), float(centre + half)
