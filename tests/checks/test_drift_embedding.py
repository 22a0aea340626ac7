"""MMD and the classifier test against plain implementations, scikit-learn and the bootstrap; their level and their power."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from sklearn.metrics.pairwise import rbf_kernel

from toolkit.checks import drift_embedding
from toolkit.checks.drift_embedding import auc_interval, classifier_test, mmd, out_of_fold_scores


def cloud(num: int, *, seed: int, shift: float = 0.0, scale: float = 1.0, width: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, scale, size=(num, width))


def test_mmd_is_the_unbiased_estimate_of_its_definition() -> None:
    reference, new = cloud(40, seed=0), cloud(30, seed=1, shift=0.5)
    pooled = np.concatenate([reference, new])
    squared = ((pooled[:, None] - pooled[None]) ** 2).sum(axis=2)
    gamma = 1 / np.median(squared)
    within = [rbf_kernel(part, gamma=gamma) for part in (reference, new)]
    means = [(k.sum() - len(k)) / (len(k) * (len(k) - 1)) for k in within]
    expected = sum(means) - 2 * rbf_kernel(reference, new, gamma=gamma).mean()
    value, p = mmd(reference, new)
    assert value == pytest.approx(expected, rel=1e-9)
    assert p <= 0.01


def test_out_of_fold_scores_are_those_of_ridge_regression_fitted_without_the_fold() -> None:
    reference, new = cloud(60, seed=0), cloud(50, seed=1, shift=0.4)
    pooled, members = np.concatenate([reference, new]), np.repeat([0.0, 1.0], [60, 50])
    scores = out_of_fold_scores(pooled, members[:, None], seed=3)[:, 0]
    generator = np.random.default_rng(4)
    features = drift_embedding._features(pooled, generator)
    folds = generator.permutation(len(pooled)) % drift_embedding.NUM_FOLDS
    for fold in range(drift_embedding.NUM_FOLDS):
        held = folds == fold
        ridge = Ridge(alpha=drift_embedding.RIDGE * (~held).sum()).fit(features[~held], members[~held])
        assert scores[held] == pytest.approx(ridge.predict(features[held]) - members[~held].mean(), abs=1e-9)


def test_auc_and_its_interval_agree_with_scikit_learn_and_the_bootstrap() -> None:
    reference, new = cloud(150, seed=0), cloud(120, seed=1, shift=0.25)
    test = classifier_test(reference, new, num_permutations=99)
    truth = np.repeat([0, 1], [150, 120])
    assert test.auc == pytest.approx(roc_auc_score(truth, test.scores_T))
    generator = np.random.default_rng(0)
    draws = []
    for _ in range(800):
        rows = np.concatenate([generator.integers(150, size=150), 150 + generator.integers(120, size=120)])
        draws.append(roc_auc_score(truth[rows], test.scores_T[rows]))
    assert test.interval == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.02)


def test_auc_intervals_cover_the_truth() -> None:
    generator = np.random.default_rng(0)
    truth = 0.7602  # Phi(1 / sqrt 2): two normal scores one standard deviation apart
    hits = 0
    for _ in range(400):
        low, high = auc_interval(generator.normal(1, 1, 60), generator.normal(0, 1, 80))
        hits += low <= truth <= high
    assert 0.92 <= hits / 400 <= 0.98


@pytest.mark.parametrize(
    "test",
    [
        lambda a, b, s: mmd(a, b, num_permutations=59, seed=s)[1],
        lambda a, b, s: classifier_test(a, b, num_permutations=59, seed=s).p,
    ],
)
def test_p_values_are_valid_without_a_shift_and_small_with_one(test) -> None:
    p_values = np.array([test(cloud(50, seed=2 * s), cloud(40, seed=2 * s + 1), s) for s in range(200)])
    assert (p_values <= 0.05).mean() <= 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / 200)
    assert (p_values <= 0.5).mean() == pytest.approx(0.5, abs=0.12)
    assert test(cloud(80, seed=0), cloud(80, seed=1, shift=0.6), 0) <= 1 / 60 + 1e-9
    assert test(cloud(150, seed=0), cloud(150, seed=1, scale=1.8), 0) <= 0.05, "a change of spread alone must show"
