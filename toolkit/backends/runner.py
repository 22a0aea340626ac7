"""What every way of running a model has in common, so that no check knows which one it holds.

Legend: N images, C channels, H height, W width, K labels.
"""

from typing import Protocol, runtime_checkable

import numpy as np

from toolkit.errors import UsageError


@runtime_checkable
class Runner(Protocol):
    """A deployed model at work: float32 pixels 0..255 (N, C, H, W), already resized, to logits (N, K)."""

    name: str

    def __call__(self, images_NCHW: np.ndarray) -> np.ndarray: ...


def pixel_batch(images_NCHW: np.ndarray, *, name: str) -> np.ndarray:
    """The batch as contiguous float32. Raises `UsageError`, naming the runner, unless it is one of numeric NCHW images."""
    images_NCHW = np.asarray(images_NCHW)
    if images_NCHW.ndim != 4 or images_NCHW.dtype.kind not in "fiu":
        raise UsageError(
            f"{name} takes a batch of pixels (N, C, H, W) in float32, 0 to 255; "
            f"got {images_NCHW.dtype} of shape {list(images_NCHW.shape)}."
        )
    return np.ascontiguousarray(images_NCHW, dtype=np.float32)
