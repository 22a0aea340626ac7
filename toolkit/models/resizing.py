"""Resizing inside a model, for models that are run together though each was trained at a size of its own.

Both sizes are known when the module is built, so bilinear resizing (widened when shrinking, as PIL does) is one fixed matrix
per axis. Two matrix products are the same numbers in torch and in every runtime, where resize operators disagree about
antialiasing. PIL also rounds to whole grey levels after each axis; here nothing is rounded.

Shapes: N batch, C channels, H height, W width; h, w the new ones.
"""

import torch
from torch import Tensor, nn


class Resize(nn.Module):
    """Float images (N, C, H, W) of size `from_px` to size `to_px` (height, width); values keep their range."""

    rows_hH: Tensor
    columns_Ww: Tensor

    def __init__(self, from_px: tuple[int, int], to_px: tuple[int, int]) -> None:
        super().__init__()
        self.from_px = (int(from_px[0]), int(from_px[1]))
        self.register_buffer("rows_hH", _weights(from_px[0], to_px[0]), persistent=False)
        self.register_buffer("columns_Ww", _weights(from_px[1], to_px[1]).T.contiguous(), persistent=False)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Images (N, C, h, w), in the type of the buffers (float32 unless moved)."""
        return self.rows_hH @ images_NCHW.to(self.rows_hH.dtype) @ self.columns_Ww


def _weights(num_in: int, num_out: int) -> Tensor:
    """The matrix (num_out, num_in) of bilinear resizing along one axis: resizing the unit vectors gives its columns."""
    unit = torch.eye(num_in, dtype=torch.float64)[None, None]
    resized = nn.functional.interpolate(unit, size=(num_out, num_in), mode="bilinear", antialias=True, align_corners=False)
    return resized[0, 0].float()
