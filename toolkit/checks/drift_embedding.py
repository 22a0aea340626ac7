"""Do two sets of embeddings come from one source? Two tests that need no assumption but that of exchangeable samples.

MMD asks whether the means in a kernel's feature space differ (Gretton et al., JMLR 13, 2012); the classifier test whether
any classifier can tell the two apart (Lopez-Paz and Oquab, ICLR 2017). The first is the stronger for a small shift of
everything, the second gives an effect a person understands: an AUC of 0.5 is no difference, 1 is another world. Both get
their p-value from permuting which set each sample belongs to, so it is exact for any sample size and any distribution.

The classifier is ridge regression on the embeddings and random Fourier features of them (Rahimi and Recht, NeurIPS 2007):
its coefficients for all permutations come from one factorisation a fold, where refitting a forest would take minutes.

Legend: M reference samples, N new ones, T = M + N, P components, F features, B permutations.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.spatial.distance import cdist, pdist

from toolkit.checks.intervals import Interval, Z

NUM_PERMUTATIONS = 999
MAX_KERNEL_SAMPLES = 1000
NUM_FOURIER = 64
NUM_FOLDS = 5
RIDGE = 0.02


@dataclass(frozen=True, eq=False)
class ClassifierTest:
    """AUC of telling new from reference out of fold, its 95% interval (DeLong), the exact p-value, a score for each sample.

    Scores (M + N,), reference first: higher is more like the new data and less like the reference.
    """

    auc: float
    interval: Interval
    p: float
    scores_T: np.ndarray


def mmd(
    reference_MP: np.ndarray, new_NP: np.ndarray, *, num_permutations: int = NUM_PERMUTATIONS, seed: int = 0
) -> tuple[float, float]:
    """Unbiased squared MMD with an RBF kernel at the median distance, and its permutation p-value.

    At most 1,000 samples of each set are used, the first ones: sets are expected in random order.
    """
    reference_MP, new_NP = reference_MP[:MAX_KERNEL_SAMPLES], new_NP[:MAX_KERNEL_SAMPLES]
    pooled_TP = np.concatenate([reference_MP, new_NP])
    squared_TT = cdist(pooled_TP, pooled_TP, "sqeuclidean")
    kernel_TT = np.exp(-squared_TT / max(float(np.median(squared_TT)), 1e-12))
    np.fill_diagonal(kernel_TT, 0.0)
    new_TB = _memberships(len(reference_MP), len(new_NP), num_permutations, seed)
    n, m = len(new_NP), len(reference_MP)
    product_TB = kernel_TT @ new_TB
    within_new_B = (new_TB * product_TB).sum(axis=0)
    row_T = kernel_TT.sum(axis=1)
    across_B = row_T @ new_TB - within_new_B
    within_reference_B = kernel_TT.sum() - 2 * across_B - within_new_B
    values_B = within_new_B / (n * (n - 1)) + within_reference_B / (m * (m - 1)) - 2 * across_B / (n * m)
    return float(values_B[0]), permutation_p(values_B)


def classifier_test(
    reference_MP: np.ndarray, new_NP: np.ndarray, *, num_permutations: int = NUM_PERMUTATIONS, seed: int = 0
) -> ClassifierTest:
    """Cross-validated AUC of a classifier that tells new from reference, with its exact one-sided p-value."""
    new_TB = _memberships(len(reference_MP), len(new_NP), num_permutations, seed)
    scores_TB = out_of_fold_scores(np.concatenate([reference_MP, new_NP]), new_TB, seed=seed)
    auc_B = _aucs(scores_TB, new_TB)
    scores_T = scores_TB[:, 0]
    interval = auc_interval(scores_T[len(reference_MP) :], scores_T[: len(reference_MP)])
    return ClassifierTest(float(auc_B[0]), interval, permutation_p(auc_B), scores_T)


def out_of_fold_scores(pooled_TP: np.ndarray, new_TB: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """The classifier's score (T, B) of each sample, fitted without it, for every column of memberships (T, B).

    Without the intercept: folds differ in their share of new samples, and that would show in pooled scores.
    """
    generator = np.random.default_rng(seed + 1)
    features_TF = _features(pooled_TP, generator)
    folds_T = generator.permutation(len(pooled_TP)) % NUM_FOLDS
    scores_TB = np.empty(new_TB.shape)
    for fold in range(NUM_FOLDS):
        held = folds_T == fold
        fitted_TF, targets_TB = features_TF[~held], new_TB[~held]
        centre_F = fitted_TF.mean(axis=0)
        centred_TF = fitted_TF - centre_F
        gram_FF = centred_TF.T @ centred_TF
        gram_FF[np.diag_indices_from(gram_FF)] += RIDGE * len(fitted_TF)
        weights_FB = np.linalg.solve(gram_FF, centred_TF.T @ (targets_TB - targets_TB.mean(axis=0)))
        scores_TB[held] = (features_TF[held] - centre_F) @ weights_FB
    return scores_TB


def auc_interval(positive_N: np.ndarray, negative_M: np.ndarray) -> Interval:
    """95% interval of the AUC by DeLong's variance (Biometrics 44, 1988), cut to 0..1."""
    n, m = len(positive_N), len(negative_M)
    ranks = stats.rankdata(np.concatenate([positive_N, negative_M]))
    placed_N = (ranks[:n] - stats.rankdata(positive_N)) / m
    placed_M = 1 - (ranks[n:] - stats.rankdata(negative_M)) / n
    value = float(placed_N.mean())
    half = Z * float(np.sqrt(placed_N.var(ddof=1) / n + placed_M.var(ddof=1) / m))
    return max(0.0, value - half), min(1.0, value + half)


def permutation_p(values_B: np.ndarray) -> float:
    """The share of permutations at least as extreme as the first value, itself counted, so that it is never 0."""
    return float((values_B >= values_B[0] - 1e-12).mean())


def _memberships(num_reference: int, num_new: int, num_permutations: int, seed: int) -> np.ndarray:
    """Columns (T, 1 + B) of 0 and 1: first the real one, then random permutations of it."""
    real_T = np.repeat([0.0, 1.0], [num_reference, num_new])
    generator = np.random.default_rng(seed)
    permuted_BT = generator.permuted(np.tile(real_T, (num_permutations, 1)), axis=1)
    return np.concatenate([real_T[None], permuted_BT]).T


def _features(pooled_TP: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Standardised embeddings, and cosines of random projections of them at the scale of their median distance."""
    deviation_P = pooled_TP.std(axis=0)
    scaled_TP = (pooled_TP - pooled_TP.mean(axis=0)) / np.where(deviation_P > 1e-12, deviation_P, 1.0)
    sample_TP = scaled_TP[generator.permutation(len(scaled_TP))[:300]]
    scale = max(float(np.median(pdist(sample_TP))), 1e-12)
    directions_PF = generator.standard_normal((scaled_TP.shape[1], NUM_FOURIER)) / scale
    phases_F = generator.uniform(0, 2 * np.pi, NUM_FOURIER)
    return np.concatenate([scaled_TP, np.sqrt(2) * np.cos(scaled_TP @ directions_PF + phases_F)], axis=1)


def _aucs(scores_TB: np.ndarray, new_TB: np.ndarray) -> np.ndarray:
    ranks_TB = stats.rankdata(scores_TB, axis=0)
    n = float(new_TB[:, 0].sum())
    m = len(new_TB) - n
    return ((ranks_TB * new_TB).sum(axis=0) - n * (n + 1) / 2) / (n * m)
