"""Temperature scaling: one number that divides the logits so that confidences become honest (Guo et al., ICML 2017).

It changes no answer, only how sure the model says it is. Whether it helps is judged on images that it was not fitted to
(cross-fitting), because one number fitted to few images can also do harm.

Legend: N samples, K classes.
"""

from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats

from toolkit.bundle import Measurement
from toolkit.checks.intervals import CONFIDENCE
from toolkit.checks.metrics import Predictions, ece

MIN_SAMPLES = 50
NUM_FOLDS = 5
BOUNDS = (0.05, 20.0)


@dataclass(frozen=True)
class Calibration:
    """The temperature for all samples, and what it is worth on samples it was not fitted to."""

    temperature: float
    helps: bool
    measurements: tuple[Measurement, ...]


def fit_temperature(logits_NK: np.ndarray, targets_N: np.ndarray) -> float:
    """The temperature, 0.05..20, at which `logits_NK` / temperature have the smallest negative log-likelihood."""

    def loss(log_temperature: float) -> float:
        return float(_losses(logits_NK / np.exp(log_temperature), targets_N).mean())

    found = optimize.minimize_scalar(loss, bounds=tuple(np.log(BOUNDS)), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))  # pyright: ignore[reportAttributeAccessIssue]


def calibrate(logits_NK: np.ndarray, targets_N: np.ndarray, *, seed: int = 0) -> Calibration:
    """Fit a temperature and judge it by 5-fold cross-fitting: it helps when the 95% interval of the gain lies above zero.

    Fewer than 50 samples say nothing: then it does not help, and nothing is measured. Raises `InputRefused` for logits that
    are not finite.
    """
    logits_NK = np.asarray(logits_NK, np.float64)
    if len(logits_NK) < MIN_SAMPLES:
        return Calibration(1.0, False, ())
    before = Predictions.from_logits(logits_NK, targets_N)
    scaled_NK = _cross_fitted(logits_NK, before.targets_N, seed=seed)
    after = Predictions.from_logits(scaled_NK, targets_N)
    change_N = _losses(scaled_NK, before.targets_N) - _losses(logits_NK, before.targets_N)
    change, n = float(change_N.mean()), len(change_N)
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1) * change_N.std(ddof=1) / np.sqrt(n))
    helps = change + half < 0
    temperature = fit_temperature(logits_NK, before.targets_N)
    ones = np.ones((1, n))
    errors = {"baseline": float(ece(before, ones)[0]), "candidate": float(ece(after, ones)[0])}
    losses = {"baseline": float(_losses(logits_NK, before.targets_N).mean())}
    losses["candidate"] = losses["baseline"] + change
    measurements = (
        Measurement("temperature", temperature, n=n),
        *(Measurement(f"nll.{side}", value, "nats", n=n) for side, value in losses.items()),
        Measurement("nll.difference", change, "nats", (change - half, change + half), n),
        *(Measurement(f"ece.{side}", value, n=n) for side, value in errors.items()),
        Measurement("ece.difference", errors["candidate"] - errors["baseline"], n=n),
    )
    return Calibration(temperature, helps, measurements)


def _cross_fitted(logits_NK: np.ndarray, targets_N: np.ndarray, *, seed: int) -> np.ndarray:
    """The logits, each divided by a temperature fitted to the other folds."""
    folds = np.array_split(np.random.default_rng(seed).permutation(len(logits_NK)), NUM_FOLDS)
    scaled_NK = np.empty_like(logits_NK)
    for fold in folds:
        others = np.setdiff1d(np.arange(len(logits_NK)), fold)
        scaled_NK[fold] = logits_NK[fold] / fit_temperature(logits_NK[others], targets_N[others])
    return scaled_NK


def _losses(logits_NK: np.ndarray, targets_N: np.ndarray) -> np.ndarray:
    return -special.log_softmax(logits_NK, axis=1)[np.arange(len(targets_N)), targets_N]
