"""Handwritten digits: 1,797 real 8×8 images that come with scikit-learn, for quick runs and tests without a network."""

import numpy as np

from toolkit.data.images import ImageSet, Sample
from toolkit.data.splits import with_splits


def digits(*, val_fraction: float = 0.15, test_fraction: float = 0.25, seed: int = 0) -> ImageSet:
    """Ten classes of 8×8 greyscale digits (UCI optical recognition of handwritten digits), split by class.

    Raises `UsageError` for impossible fractions.
    """
    from sklearn.datasets import load_digits  # takes a second to import, and most runs read other data

    images_NP, targets_N = load_digits(return_X_y=True)
    pixels_NHW = np.round(images_NP.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    samples = [
        Sample(key=f"digits/{i:04d}", target=int(target), split="train", source=pixels_HW)
        for i, (pixels_HW, target) in enumerate(zip(pixels_NHW, targets_N, strict=True))
    ]
    return ImageSet(
        name="digits",
        labels=tuple(str(k) for k in range(10)),
        samples=with_splits(samples, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed),
        licence="BSD-3-Clause (scikit-learn), CC BY 4.0 (UCI)",
    )
