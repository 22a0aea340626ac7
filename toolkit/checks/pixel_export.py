"""Exported graphs get their preprocessing in front, are held against training's own, and get golden images to match.

Legend: N images, C channels, H height, W width, K labels.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from toolkit.backends import EagerRunner
from toolkit.backends.pixel_front import front_part, model_part, prepend_preprocessing
from toolkit.backends.run_onnx import open_session
from toolkit.bundle import Preprocessing, Report
from toolkit.checks.preprocessing_parity import PixelLimits, preprocessing_parity
from toolkit.data import ImageSet, decoded
from toolkit.errors import InputRefused, ToolkitError, UsageError

MAX_IMAGES = 60


@dataclass(frozen=True, eq=False)
class Fronted:
    """A graph with its preprocessing inside: its path, the module behind it, whole images, and the report."""

    path: Path
    reference: nn.Module
    images: Sequence[np.ndarray]
    report: Report

    def golden(self, num: int) -> dict[str, torch.Tensor]:
        """Up to `num` whole images of one size (the commonest) as `images`, uint8 (N, H, W, C), and `logits` to expect.

        The logits are the untouched module's in float64 on the pixels that the graph's own preprocessing makes.
        """
        size, _ = Counter(image.shape for image in self.images).most_common(1)[0]
        chosen = np.stack([image for image in self.images if image.shape == size][:num])
        front = open_session(front_part(self.path), threads=1)
        pixels_NCHW = front.run(None, {front.get_inputs()[0].name: chosen})[0]
        logits_NK = EagerRunner(self.reference, dtype="float64", threads=1)(pixels_NCHW).astype(np.float32)
        return {"images": torch.from_numpy(chosen), "logits": torch.from_numpy(logits_NK)}


def put_in_front(
    paths: Iterable[Path],
    reference: nn.Module,
    data: ImageSet,
    *,
    preprocessing: Preprocessing,
    subject: str,
    limits: PixelLimits,
) -> Fronted:
    """Put the preprocessing in front of every graph of `paths` and check the first on real images of `data`.

    Raises `UsageError` where no image of the test (or validation) split can be read, and what `prepend_preprocessing` raises.
    """
    paths = list(paths)
    for path in paths:
        prepend_preprocessing(path, preprocessing)
    images, num_unreadable = _whole_images(data, preprocessing)
    for path in paths[1:]:
        _require_same_model(path, images[0])
    report = preprocessing_parity(paths[0], reference, images, preprocessing=preprocessing, subject=subject, limits=limits)
    report = replace(report, details={**report.details, "num_unreadable": num_unreadable})
    return Fronted(paths[0], reference, images, report)


def _require_same_model(path: Path, image_HWC: np.ndarray) -> None:
    """Raise `InputRefused` unless the whole graph answers as the model behind does on the pixels of the front."""
    whole, front, behind = (open_session(graph, threads=1) for graph in (path, front_part(path), model_part(path)))
    name, images_NHWC = whole.get_inputs()[0].name, image_HWC[None]
    answers_NK = whole.run(None, {name: images_NHWC})[0]
    expected_NK = behind.run(None, {name: front.run(None, {name: images_NHWC})[0]})[0]
    if answers_NK.shape != expected_NK.shape or np.abs(answers_NK - expected_NK).max() > 1e-2 * np.abs(expected_NK).max():
        raise InputRefused(f"{path.name} with its preprocessing inside does not answer as without: export contract=tensor.")


def _whole_images(data: ImageSet, preprocessing: Preprocessing) -> tuple[list[np.ndarray], int]:
    """Up to 60 decoded images in their own sizes, evenly spaced over the test (or validation) split; how many are damaged."""
    split = data.split("test") if len(data.split("test")) else data.split("val")
    chosen = np.unique(np.linspace(0, len(split) - 1, min(len(split), MAX_IMAGES)).round().astype(int))
    found = []
    for index in chosen.tolist():
        try:
            found.append(decoded(split.samples[index].source, preprocessing))
        except ToolkitError:  # the data's own check has named it
            continue
    if not found:
        raise UsageError(f"data '{data.name}' has no readable image to check the preprocessing on.")
    return found, len(chosen) - len(found)
