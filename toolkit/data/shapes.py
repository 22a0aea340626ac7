"""Drawn shapes on noise: a data set that needs no download, is learnt in seconds and has any size, for tests and dry runs."""

import numpy as np

from toolkit.data.images import ImageSet, Sample, Split
from toolkit.errors import UsageError

LABELS = ("circle", "square", "triangle", "cross")
SLICES = ("dark", "bright")


def shapes(num_samples: int = 240, *, size_px: int = 32, seed: int = 0, num_labels: int = 3, noise: float = 8.0) -> ImageSet:
    """`num_samples` RGB images of 2 to 4 shapes in turn, on `dark` and `bright` backgrounds (the slices).

    `noise` is the standard deviation of the pixel noise, in grey levels of 0..255. Of each run of 20 images, 12 go to
    train, 3 to val and 5 to test. Equal arguments give equal pixels. Raises `UsageError` for values out of range.
    """
    if num_samples < 1 or size_px < 8 or not 2 <= num_labels <= len(LABELS) or noise < 0:
        raise UsageError(
            f"shapes needs num_samples >= 1, size_px >= 8, num_labels 2 to {len(LABELS)}, noise >= 0; "
            f"got {num_samples}, {size_px}, {num_labels}, {noise}."
        )
    random = np.random.default_rng(seed)
    samples = []
    for i in range(num_samples):
        target = i % num_labels
        slice_index = (i // num_labels) % 2
        pixels = _draw(LABELS[target], SLICES[slice_index], size_px, noise, random)
        split = _split(i // num_labels)
        samples.append(Sample(f"shapes/{i:05d}", target, split, pixels, SLICES[slice_index]))
    return ImageSet(name="shapes", labels=LABELS[:num_labels], samples=tuple(samples), licence="Apache-2.0 (generated)")


def _split(position: int) -> Split:
    place = (position * 7) % 20
    return "test" if place < 5 else "val" if place < 8 else "train"


def _draw(label: str, slice_name: str, size_px: int, noise: float, random: np.random.Generator) -> np.ndarray:
    low, high = ((10, 70), (150, 250)) if slice_name == "dark" else ((180, 240), (10, 100))
    background, colour = random.uniform(*low, size=3), random.uniform(*high, size=3)
    radius = size_px * random.uniform(0.22, 0.38)
    centre_y, centre_x = random.uniform(radius, size_px - radius, size=2)
    y, x = np.mgrid[0:size_px, 0:size_px] + 0.5
    dy, dx = y - centre_y, x - centre_x
    inside = {
        "circle": dy**2 + dx**2 <= radius**2,
        "square": np.maximum(abs(dy), abs(dx)) <= radius * 0.85,
        "triangle": (dy <= radius * 0.8) & (abs(dx) * 1.7 <= dy + radius),
        "cross": (np.minimum(abs(dy), abs(dx)) <= radius * 0.3) & (np.maximum(abs(dy), abs(dx)) <= radius),
    }[label]
    pixels_HWC = np.where(inside[:, :, None], colour, background) + random.normal(0, noise, size=(size_px, size_px, 3))
    return np.clip(np.round(pixels_HWC), 0, 255).astype(np.uint8)
