"""What an image looks like in seven numbers that need no model: what a camera, a lamp or a compressor changes first.

Light and structure are measured on a copy of at most 256 px on its longer side, so that two resolutions of one scene compare
and a large photograph costs no more than a small one; size and aspect are the original's.

Shapes: N images, S statistics, H height, W width.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from toolkit.data.decoding import decode
from toolkit.data.images import Sample
from toolkit.data.threads import map_in_threads
from toolkit.errors import InputRefused

STATISTICS = ("brightness", "contrast", "sharpness", "noise", "colour", "size", "aspect")
UNITS = {"brightness": "grey levels", "contrast": "grey levels", "sharpness": "log10", "noise": "grey levels"}
MEASURED_PX = 256


def image_statistics(source: object) -> np.ndarray:
    """The statistics (S,) of one image, in the order of `STATISTICS`.

    brightness: mean luma, 0..255. contrast: its standard deviation. sharpness: log10 of the Laplacian's variance + 1.
    noise: standard deviation of the pixel noise, by Immerkaer's operator (CVIU 64, 1996). colour: mean of max - min over
    the channels, 0..255. size: log2 of the pixel count. aspect: log2 of width / height. Raises `InputRefused` for what is
    no image.
    """
    image = decode(source)  # pyright: ignore[reportArgumentType]
    width, height = image.size
    if max(image.size) > MEASURED_PX:
        image.thumbnail((MEASURED_PX, MEASURED_PX), Image.Resampling.BOX)
    luma_HW = np.asarray(image.convert("L"), np.float64)
    laplacian_HW = _filtered(luma_HW, ((0, 1, 0), (1, -4, 1), (0, 1, 0)))
    noise_HW = _filtered(luma_HW, ((1, -2, 1), (-2, 4, -2), (1, -2, 1)))
    return np.array(
        [
            luma_HW.mean(),
            luma_HW.std(),
            np.log10(laplacian_HW.var() + 1),
            np.sqrt(np.pi / 2) / 6 * np.abs(noise_HW).mean(),
            0.0 if image.mode == "L" else np.ptp(np.asarray(image.convert("RGB"), np.float64), axis=2).mean(),
            np.log2(width * height),
            np.log2(width / height),
        ]
    )


def all_image_statistics(samples: Sequence[Sample]) -> np.ndarray:
    """The statistics (N, S) of every sample, in order, in threads; a row of NaN for one that cannot be decoded."""

    def measure(sample: Sample) -> np.ndarray:
        try:
            return image_statistics(sample.source)
        except InputRefused:
            return np.full(len(STATISTICS), np.nan)

    return np.array(list(map_in_threads(measure, samples, description="Measuring images"))).reshape(-1, len(STATISTICS))


def _filtered(luma_HW: np.ndarray, kernel: tuple[tuple[int, ...], ...]) -> np.ndarray:
    """The 3x3 `kernel` at every inner pixel; of an image thinner than 3 px, at its repeated edge."""
    padded = np.pad(luma_HW, [(1, 1) if side < 3 else (0, 0) for side in luma_HW.shape], mode="edge")
    rows, columns = padded.shape[0] - 2, padded.shape[1] - 2
    taps = [(y, x, weight) for y, line in enumerate(kernel) for x, weight in enumerate(line) if weight]
    return sum((weight * padded[y : y + rows, x : x + columns] for y, x, weight in taps), np.zeros((rows, columns)))
