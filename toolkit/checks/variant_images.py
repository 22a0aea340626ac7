"""The images that lower precisions are made and judged from, each for one purpose only.

Training images measure ranges and calibrate. Layers go back to float32 by what is decided on the validation images. The test
images see the final graph of each precision alone, so that its accuracy is nobody's choice.

Legend: N images, C channels, H height, W width.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from toolkit.bundle import Manifest
from toolkit.checks.evaluate import describe_data
from toolkit.data import ImageSet, Pixels, load_pixels
from toolkit.errors import InputRefused

MAX_CHOOSING = 500


@dataclass(frozen=True, eq=False)
class Material:
    """What variants are made and judged from: training pixels, images to choose on, labelled test images."""

    train_NCHW: np.ndarray
    choosing: Pixels
    test: Pixels
    data: dict[str, Any]


def load_material(data: ImageSet, manifest: Manifest, *, num_train: int, num_test: int) -> Material:
    """Decode the images that lower precisions need: `num_train` and `num_test` of them, evenly chosen, where there are more.

    Raises `InputRefused` when the data has other labels than the model, or no training or no test images.
    """
    if sorted(manifest.labels) != sorted(data.labels):
        raise InputRefused(
            f"the model knows the labels {', '.join(manifest.labels)}; data '{data.name}' has {', '.join(data.labels)}. "
            "A lower precision is judged by its decisions: export with data of the model's own labels, or in fp32 only."
        )
    splits = {name: data.split(name) for name in ("train", "val", "test")}
    test = "test" if len(splits["test"]) else "val"
    if not len(splits["train"]) or not len(splits[test]):
        raise InputRefused(
            f"data '{data.name}' has {len(splits['train'])} training and {len(splits[test])} test images; ranges are measured "
            "on training images and accuracy on test images. Give data with both, or export in fp32 only."
        )
    choosing = splits["val"] if test == "test" and len(splits["val"]) else splits["train"]
    train, chosen, tested = (
        load_pixels(_evenly(images, number), manifest.preprocessing)
        for images, number in (
            (splits["train"], num_train),
            (choosing, MAX_CHOOSING),
            (splits[test], num_test),
        )
    )
    described = describe_data(data, test, len(tested))
    return Material(train.images_NCHW.numpy().astype(np.float32), chosen, tested, described)


def spread(images_NCHW: np.ndarray, number: int) -> np.ndarray:
    """At most `number` of the images, evenly spaced."""
    return images_NCHW[np.unique(np.linspace(0, len(images_NCHW) - 1, min(number, len(images_NCHW))).round().astype(int))]


def _evenly(images: ImageSet, number: int) -> ImageSet:
    chosen = np.unique(np.linspace(0, len(images) - 1, min(number, len(images))).round().astype(int))
    return replace(images, samples=tuple(images.samples[i] for i in chosen))
