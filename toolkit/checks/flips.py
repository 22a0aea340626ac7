"""Flips: samples on which the verdict changes when the model does.

Two models of equal accuracy can disagree on many samples, and users notice the ones that used to be right. A negative flip
is old right, new wrong; a positive flip is the opposite (Yan et al., CVPR 2021). The identity
error(new) - error(old) = NFR - PFR ties them to accuracy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from toolkit.bundle import Measurement
from toolkit.checks.intervals import mcnemar_p, share_interval
from toolkit.checks.metrics import Predictions

HIGH_CONFIDENCE = 0.9
MAX_LISTED = 2000


@dataclass(frozen=True, eq=False)
class Flips:
    """What changed between `old` and `new` predictions of the same N samples."""

    old: Predictions
    new: Predictions

    def __post_init__(self) -> None:
        if len(self.old) != len(self.new) or (self.old.targets_N != self.new.targets_N).any():
            raise ValueError("flips compare two models on identical samples with identical targets")

    def __len__(self) -> int:
        return len(self.old)

    @property
    def negative_N(self) -> np.ndarray:  # noqa: N802
        return self.old.correct_N & ~self.new.correct_N

    @property
    def positive_N(self) -> np.ndarray:  # noqa: N802
        return ~self.old.correct_N & self.new.correct_N

    @property
    def num_negative(self) -> int:
        return int(self.negative_N.sum())

    @property
    def num_positive(self) -> int:
        return int(self.positive_N.sum())

    @property
    def negative_rate(self) -> float:
        """NFR: share of all samples, 0..1."""
        return self.num_negative / len(self)

    @property
    def positive_rate(self) -> float:
        """PFR: share of all samples, 0..1."""
        return self.num_positive / len(self)

    @property
    def relative_negative_rate(self) -> float | None:
        """NFR over what independent errors would give, (1 - error_old) * error_new; None when that is zero."""
        expected = float(self.old.correct_N.mean()) * float((~self.new.correct_N).mean())
        return self.negative_rate / expected if expected else None

    @property
    def churn(self) -> float:
        """Share of samples whose predicted label changed, 0..1 (Fard et al., NeurIPS 2016)."""
        return float((self.old.classes_N != self.new.classes_N).mean())

    @property
    def excess_churn(self) -> float:
        """Churn beyond what the change of accuracy itself requires, 0..1."""
        return self.churn - abs(self.positive_rate - self.negative_rate)

    @property
    def num_confident_negative(self) -> int:
        """Negative flips that the new model gets wrong with a confidence of at least 0.9."""
        return int((self.negative_N & (self.new.confidences_N >= HIGH_CONFIDENCE)).sum())


def flip_measurements(flips: Flips, *, scope: str = "") -> list[Measurement]:
    """The rates of `flips` with exact intervals; `scope` is a suffix of the names such as `[slice=mono]`."""
    n = len(flips)
    rates = [("negative_flip_rate", flips.num_negative), ("positive_flip_rate", flips.num_positive)]
    measurements = [Measurement(f"{name}{scope}", count / n, interval=share_interval(count, n), n=n) for name, count in rates]
    measurements.append(Measurement(f"mcnemar_p{scope}", mcnemar_p(flips.num_negative, flips.num_positive), n=n))
    if scope:
        return measurements
    return [
        *measurements,
        Measurement("relative_negative_flip_rate", flips.relative_negative_rate, n=n),
        Measurement("confident_negative_flips", flips.num_confident_negative, unit="samples", n=n),
        Measurement("churn", flips.churn, n=n),
        Measurement("excess_churn", flips.excess_churn, n=n),
    ]


def list_flips(flips: Flips, *, keys: Sequence[str], slices: Sequence[str], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Every flipped sample with both predictions, negative ones first, the most confidently wrong on top."""
    listed = []
    for index in np.flatnonzero(flips.negative_N | flips.positive_N).tolist():
        negative = bool(flips.negative_N[index])
        wrong = flips.new if negative else flips.old
        entry = {
            "key": keys[index],
            "slice": slices[index],
            "kind": "negative" if negative else "positive",
            "target": labels[flips.old.targets_N[index]],
            "baseline": _said(flips.old, index, labels),
            "candidate": _said(flips.new, index, labels),
        }
        listed.append((not negative, -wrong.confidences_N[index], entry))
    return [entry for _, _, entry in sorted(listed, key=lambda item: item[:2])][:MAX_LISTED]


def _said(predictions: Predictions, index: int, labels: Sequence[str]) -> dict[str, Any]:
    return {
        "label": labels[predictions.classes_N[index]],
        "confidence": round(float(predictions.confidences_N[index]), 4),
    }
