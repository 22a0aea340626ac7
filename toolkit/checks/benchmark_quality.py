"""What a runner's logits are worth: how often it is right, and how far it is from the reference, on the same images.

Legend: N images, K labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from toolkit.bundle import Measurement
from toolkit.checks.intervals import share_interval
from toolkit.checks.metrics import Predictions, balanced_accuracy
from toolkit.data import Pixels
from toolkit.errors import InputRefused


@dataclass(frozen=True, eq=False)
class Reference:
    """The logits that all others are held against, and what made them."""

    logits_NK: np.ndarray
    name: str


def quality(
    logits_NK: np.ndarray, pixels: Pixels, labels: Sequence[str], reference: Reference, where: str
) -> list[Measurement]:
    """Accuracy and balanced accuracy on `pixels`, share of the reference's answers, and the distance from its logits.

    `labels` names the columns; `where` is `<runner>[batch=<size>]`. The error is the largest difference of a logit, and the
    root mean square of all differences as a share of the reference logits'. Raises `InputRefused` when the labels differ.
    """
    if sorted(labels) != sorted(pixels.labels):
        raise InputRefused(
            f"the bundle knows the labels {', '.join(labels)}; the data has {', '.join(pixels.labels)}. "
            "Benchmark it on data with its own labels."
        )
    columns = [list(labels).index(label) for label in pixels.labels]
    predictions = Predictions.from_logits(logits_NK[:, columns], pixels.targets_N.numpy())
    num, ones_1N = len(predictions), np.ones((1, len(predictions)))
    right = int((predictions.classes_N == predictions.targets_N).sum())
    same = int((logits_NK.argmax(axis=1) == reference.logits_NK.argmax(axis=1)).sum())
    error_NK = logits_NK - reference.logits_NK
    scale = max(float(np.sqrt(np.mean(np.square(reference.logits_NK)))), float(np.finfo(np.float64).tiny))
    return [
        Measurement(f"accuracy.{where}", right / num, "1", share_interval(right, num), num),
        Measurement(f"balanced_accuracy.{where}", float(balanced_accuracy(predictions, ones_1N)[0]), n=num),
        Measurement(f"top1_agreement.{where}", same / num, "1", share_interval(same, num), num),
        Measurement(f"max_error.{where}", float(np.abs(error_NK).max()), n=num),
        Measurement(f"relative_error.{where}", float(np.sqrt(np.mean(np.square(error_NK)))) / scale, n=num),
    ]
