"""Handwritten digits: 1,797 real 8×8 images that come with scikit-learn, for quick runs and tests without a network."""

import numpy as np
from sklearn.datasets import load_digits

from toolkit.data.images import ImageSet, Sample, content_digests
from toolkit.data.splits import assign_splits


def digits(*, val_fraction: float = 0.15, test_fraction: float = 0.25, seed: int = 0) -> ImageSet:
    """Ten classes of 8×8 greyscale digits (UCI optical recognition of handwritten digits), split by class.

    Raises `UsageError` for impossible fractions.
    """
    images_NHW, targets = load_digits(return_X_y=True)
    pixels_NHW = np.round(images_NHW.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    samples = [
        Sample(key=f"digits/{i:04d}", target=int(target), split="train", source=pixels)
        for i, (pixels, target) in enumerate(zip(pixels_NHW, targets, strict=True))
    ]
    splits = assign_splits(
        content_digests(samples), [s.target for s in samples], val_fraction=val_fraction, test_fraction=test_fraction, seed=seed
    )
    return ImageSet(
        name="digits",
        labels=tuple(str(k) for k in range(10)),
        samples=tuple(Sample(s.key, s.target, split, s.source, s.slice) for s, split in zip(samples, splits, strict=True)),
        licence="BSD-3-Clause (scikit-learn), CC BY 4.0 (UCI)",
    )
