"""What a runner says about a set of images: the one loop between pixels and metrics.

Legend: N samples, C channels, H height, W width, K classes.
"""

from collections.abc import Callable

import numpy as np
from rich.progress import track

from toolkit.data import Pixels
from toolkit.errors import UsageError

QUIET_BELOW = 512


def predict(runner: Callable[[np.ndarray], np.ndarray], pixels: Pixels, *, batch_size: int = 64) -> np.ndarray:
    """The outputs logits_NK (float64) of `runner`, which takes float32 pixels 0..255 images_NCHW.

    Raises `UsageError` for an empty set.
    """
    if not len(pixels):
        raise UsageError("there are no images to predict on: choose another split or slice")
    starts = range(0, len(pixels), batch_size)
    hidden = len(pixels) < QUIET_BELOW
    blocks = [
        np.asarray(runner(pixels.images_NCHW[start : start + batch_size].numpy().astype(np.float32)), np.float64)
        for start in track(starts, description="predict", transient=True, disable=hidden)
    ]
    return np.concatenate(blocks)
