"""Does a graph with its preprocessing inside see what the model was trained on? Measured before anything ships.

The training side decodes, resizes and crops with PIL; the graph does the last two itself. Both are given the same decoded
images: real ones of the data in their own sizes, and one of them in awkward ones (smaller and larger than the model's, flat,
tall). What differs is counted in grey levels, in logits and in decisions.

Legend: N images, C channels, H height, W width, K labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn

from toolkit.backends import EagerRunner
from toolkit.backends.pixel_front import front_part
from toolkit.backends.run_onnx import open_session
from toolkit.bundle import Limit, Measurement, Preprocessing, Report, environment, verdict_of
from toolkit.data import render
from toolkit.errors import UsageError

AWKWARD = ((0.5, 0.5), (2.6, 1.9), (0.4, 3.1), (3.3, 0.7))


@dataclass(frozen=True)
class PixelLimits:
    """How far the pixels inside a graph may be from those of training.

    `max_mean_levels`: grey levels of 255, on average over an image, on the worst image; roundings cost under 0.3, another
    filter several. `max_changed`: the share of images whose label may change.
    """

    max_mean_levels: float = 0.5
    max_changed: float = 0.0

    def __post_init__(self) -> None:
        if not self.max_mean_levels > 0:
            raise UsageError(f"pixel_limits.max_mean_levels is {self.max_mean_levels}; give grey levels above 0.")
        if not 0 <= self.max_changed <= 1:
            raise UsageError(f"pixel_limits.max_changed is {self.max_changed}; it is a share between 0 and 1.")


def awkward_images(image_HWC: np.ndarray, preprocessing: Preprocessing) -> list[np.ndarray]:
    """The image in sizes that are smaller, larger, flatter and taller than the model's."""
    height_px, width_px = preprocessing.size_px
    grey = image_HWC.shape[2] == 1
    source = Image.fromarray(image_HWC[:, :, 0] if grey else image_HWC)
    found = []
    for tall, wide in AWKWARD:
        size = max(1, round(wide * width_px)), max(1, round(tall * height_px))
        pixels = np.asarray(source.resize(size, Image.Resampling.BICUBIC))
        found.append(pixels[:, :, None] if grey else pixels)
    return found


def preprocessing_parity(
    path: Path,
    reference: nn.Module,
    decoded: Sequence[np.ndarray],
    *,
    preprocessing: Preprocessing,
    subject: str,
    limits: PixelLimits | None = None,
) -> Report:
    """The report `preprocessing` on the graph at `path` (uint8 images of any size) against training's way to `reference`.

    `reference` takes rendered pixels; `decoded` are whole images, uint8 (H, W, C).
    """
    limits = limits or PixelLimits()
    images = [*decoded, *awkward_images(decoded[0], preprocessing)]
    front, whole = open_session(front_part(path), threads=1), open_session(path, threads=1)
    name = whole.get_inputs()[0].name
    trained_NCHW = np.stack([render(image, preprocessing).transpose(2, 0, 1) for image in images]).astype(np.float32)
    inside_NCHW = np.concatenate([front.run(None, {name: image[None]})[0] for image in images])
    answers_NK = np.concatenate([whole.run(None, {name: image[None]})[0] for image in images])
    expected_NK = EagerRunner(reference, dtype="float64", threads=1)(trained_NCHW)
    levels_NCHW = np.abs(inside_NCHW - trained_NCHW)
    means_N = levels_NCHW.mean(axis=(1, 2, 3))
    apart_NK = np.abs(answers_NK - expected_NK)
    changed_N = answers_NK.argmax(1) != expected_NK.argmax(1)
    n = len(images)
    allowed = Limit("<=", np.floor(limits.max_changed * n).item(), "a decision must not depend on who resizes the image")
    mean_limit = Limit("<=", limits.max_mean_levels, "more is another filter and not another rounding")
    measurements = (
        Measurement.against("pixel_difference.mean", float(means_N.max()), mean_limit, unit="levels", n=n),
        Measurement("pixel_difference.max", float(levels_NCHW.max()), "levels", n=n),
        Measurement("pixel_difference.share_over_one", float((levels_NCHW > 1).mean()), n=n),
        Measurement("logit_difference.max", float(apart_NK.max()), "logits", n=n),
        Measurement("logit_difference.mean", float(apart_NK.mean()), "logits", n=n),
        Measurement.against("decisions_changed", float(changed_N.sum()), allowed, unit="images", n=n),
    )
    details = {
        "sizes": sorted({f"{image.shape[0]}x{image.shape[1]}" for image in images}),
        "num_real_images": len(decoded),
        "num_awkward_images": n - len(decoded),
        "changed": np.flatnonzero(changed_N).tolist(),
    }
    return Report("preprocessing", (subject,), verdict_of(measurements), measurements, details, environment())
