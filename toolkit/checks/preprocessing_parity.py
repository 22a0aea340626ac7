"""Does a graph with its preprocessing inside see what the model was trained on? Measured before anything ships.

The training side decodes, resizes and crops with PIL; the graph does the last two itself. Both are given the same decoded
images: real ones of the data in their own sizes, and one of them in awkward ones (smaller and larger than the model's, flat,
tall). What differs is counted in grey levels, in logits and in decisions.

Legend: N images, C channels, H height, W width, K labels.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from toolkit.backends import EagerRunner
from toolkit.backends.pixel_front import front_part
from toolkit.backends.run_onnx import open_session
from toolkit.bundle import Limit, Measurement, Preprocessing, Report, environment, verdict_of
from toolkit.data import render
from toolkit.errors import UsageError

NUM_JITTERS = 5
AWKWARD = ((0.5, 0.5), (2.6, 1.9), (0.4, 3.1), (3.3, 0.7))


@dataclass(frozen=True)
class PixelLimits:
    """How far the pixels inside a graph may be from those of training.

    `max_mean_levels`: grey levels of 255, on average over the worst image. On photographs roundings cost at most 0.1 and the
    nearest other filter (bicubic for Lanczos) at least 0.44; on pure noise roundings cost up to 0.25. `max_changed`: the share
    of images whose label may change. Ties are no changes: where the margin between the two labels is within what one grey
    level of noise makes of it, rounding decides either way.
    """

    max_mean_levels: float = 0.3
    max_changed: float = 0.0

    def __post_init__(self) -> None:
        if not self.max_mean_levels > 0:
            raise UsageError(f"limits.pixels.max_mean_levels is {self.max_mean_levels}; give grey levels above 0.")
        if not 0 <= self.max_changed <= 1:
            raise UsageError(f"limits.pixels.max_changed is {self.max_changed}; it is a share between 0 and 1.")


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
    inside_NCHW, seconds = _through(front, name, images)
    answers_NK = np.concatenate([whole.run(None, {name: image[None]})[0] for image in images])
    expected_NK = EagerRunner(reference, dtype="float64", threads=1)(trained_NCHW)
    levels_NCHW = np.abs(inside_NCHW - trained_NCHW)
    means_N = levels_NCHW.mean(axis=(1, 2, 3))
    apart_NK = np.abs(answers_NK - expected_NK)
    differing = np.flatnonzero(answers_NK.argmax(1) != expected_NK.argmax(1))
    ties = _ties(reference, trained_NCHW, expected_NK, answers_NK, differing)
    changed, n = [index for index in differing.tolist() if index not in ties], len(images)
    allowed = Limit("<=", np.floor(limits.max_changed * n).item(), "a decision must not depend on who resizes the image")
    mean_limit = Limit("<=", limits.max_mean_levels, "more is another filter and not another rounding")
    measurements = (
        Measurement.against("pixel_difference.mean", float(means_N.max()), mean_limit, unit="levels", n=n),
        Measurement("front_time", 1e3 * float(np.median(seconds)), "ms", n=n),
        Measurement("pixel_difference.max", float(levels_NCHW.max()), "levels", n=n),
        Measurement("pixel_difference.share_over_one", float((levels_NCHW > 1).mean()), n=n),
        Measurement("logit_difference.max", float(apart_NK.max()), "logits", n=n),
        Measurement("logit_difference.mean", float(apart_NK.mean()), "logits", n=n),
        Measurement.against("decisions_changed", float(len(changed)), allowed, unit="images", n=n),
    )
    details = {
        "sizes": sorted({f"{image.shape[0]}x{image.shape[1]}" for image in images}),
        "num_real_images": len(decoded),
        "num_awkward_images": n - len(decoded),
        "changed": changed,
        "ties": sorted(ties),
    }
    return Report("preprocessing", (subject,), verdict_of(measurements), measurements, details, environment())


def _through(front: Any, name: str, images: Sequence[np.ndarray]) -> tuple[np.ndarray, list[float]]:
    """The pixels that the graph's preprocessing makes of each image, and the seconds it took."""
    made, seconds = [], []
    for image_HWC in images:
        started = time.perf_counter()
        made.append(front.run(None, {name: image_HWC[None]})[0])
        seconds.append(time.perf_counter() - started)
    return np.concatenate(made), seconds


def _ties(
    reference: nn.Module, trained_NCHW: np.ndarray, expected_NK: np.ndarray, answers_NK: np.ndarray, differing: np.ndarray
) -> set[int]:
    """Those of the images `differing` whose margin one grey level of random noise moves by as much as it is wide."""
    if not len(differing):
        return set()
    generator, runner = np.random.default_rng(0), EagerRunner(reference, dtype="float64", threads=1)
    ours, theirs = expected_NK[differing].argmax(1), answers_NK[differing].argmax(1)
    rows = np.arange(len(differing))
    margins_N = expected_NK[differing][rows, ours] - expected_NK[differing][rows, theirs]
    moved_N = np.zeros(len(differing))
    for _ in range(NUM_JITTERS):
        noise_NCHW = generator.integers(-1, 2, trained_NCHW[differing].shape)
        noisy_NK = runner((trained_NCHW[differing] + noise_NCHW).clip(0, 255).astype(np.float32))
        moved_N = np.maximum(moved_N, np.abs(noisy_NK[rows, ours] - noisy_NK[rows, theirs] - margins_N))
    return set(differing[margins_N <= moved_N].tolist())
