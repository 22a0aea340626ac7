"""What a runner's logits are worth: how often it is right, and how far it is from the reference, on the same images.

Legend: N images, M of them with measured noise, C channels, H height, W width, K labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from toolkit.backends import EagerRunner
from toolkit.backends.noise import Noise, measure_noise
from toolkit.bundle import Measurement, Preprocessing
from toolkit.checks.intervals import share_interval
from toolkit.checks.metrics import Predictions, balanced_accuracy
from toolkit.checks.predict import predict
from toolkit.data import Pixels
from toolkit.errors import InputRefused
from toolkit.models import Deployed

NUM_NOISE_IMAGES, NUM_NOISE_RUNS = 32, 5


@dataclass(frozen=True, eq=False)
class Reference:
    """The logits that all others are held against, what made them, and what float32 costs on the images `measured_M`."""

    logits_NK: np.ndarray
    name: str
    noise: Noise | None = None
    measured_M: Sequence[int] = ()


def exact_reference(net: nn.Module, preprocessing: Preprocessing, pixels: Pixels) -> Reference:
    """The float64 logits of `net` behind its preprocessing on `pixels`, and float32's own error on some of them."""
    deployed = Deployed(net, preprocessing)
    logits_NK = predict(EagerRunner(deployed, dtype="float64"), pixels)
    measured_M = np.unique(np.linspace(0, len(pixels) - 1, min(len(pixels), NUM_NOISE_IMAGES)).round().astype(int)).tolist()
    images_MCHW = pixels.take(measured_M).images_NCHW.numpy().astype(np.float32)
    noise = measure_noise(deployed, images_MCHW, num_runs=NUM_NOISE_RUNS)
    return Reference(logits_NK, "torch float64", noise, measured_M)


def quality(
    logits_NK: np.ndarray, pixels: Pixels, labels: Sequence[str], reference: Reference, where: str
) -> list[Measurement]:
    """Accuracy and balanced accuracy on `pixels`, share of the reference's answers, and the distance from its logits.

    `labels` names the columns; `where` is `<runner>[batch=<size>]`. The error is the largest difference of a logit, the root
    mean square of all differences as a share of the reference logits', and the worst image's in floors where the reference
    knows them. Raises `InputRefused` when the labels differ.
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
    found = [
        Measurement(f"accuracy.{where}", right / num, "1", share_interval(right, num), num),
        Measurement(f"balanced_accuracy.{where}", float(balanced_accuracy(predictions, ones_1N)[0]), n=num),
        Measurement(f"top1_agreement.{where}", same / num, "1", share_interval(same, num), num),
        Measurement(f"max_error.{where}", float(np.abs(error_NK).max()), n=num),
        Measurement(f"relative_error.{where}", float(np.sqrt(np.mean(np.square(error_NK)))) / scale, n=num),
    ]
    if reference.noise is not None:
        ratio_M = reference.noise.ratio_N(logits_NK[reference.measured_M])
        found.append(Measurement(f"floors.{where}", float(ratio_M.max()), "floors", n=len(ratio_M)))
    return found
