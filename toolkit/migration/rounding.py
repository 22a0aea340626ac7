"""What float32 costs: the error of an old model that runs in float32 alone, in multiples of its successor's own rounding.

The floor is measured, not chosen: the successor answers the same images, and copies of them moved by one unit in the last
place, in float32; its distance from its own float64 answers is what rounding costs on each image.

Shapes: N images, C channels, H height, W width, K classes, R runs.
"""

from collections.abc import Callable

import torch
from torch import Tensor

NUM_RUNS = 5
EPSILON = 2.0**-24  # half a unit in the last place of float32, relative


def error_in_floors(old_NK: Tensor, double_NK: Tensor, single: Callable[[Tensor], Tensor], pixels_NCHW: Tensor) -> float:
    """The largest error of `old_NK` against the successor's float64 `double_NK`, in floors of its float32 answers `single`.

    What rounding the outputs alone may cost is taken off; a value that is no number is infinitely wrong.
    """
    if not bool(torch.isfinite(old_NK).all()):
        return float("inf")
    generator = torch.Generator().manual_seed(0)
    runs_RNK = torch.stack([single(_moved(pixels_NCHW, generator, run)) for run in range(NUM_RUNS)]).double()
    own_N = (runs_RNK - double_NK).square().mean((0, 2)).sqrt()
    floor_N = own_N.maximum(own_N.median()).clamp(min=torch.finfo(torch.float64).tiny)
    error_N = (old_NK.double() - double_NK).square().mean(1).sqrt()
    allowed_N = 4 * EPSILON * double_NK.square().mean(1).sqrt()
    return float(((error_N - allowed_N).clamp(min=0) / floor_N).max())


def _moved(pixels_NCHW: Tensor, generator: torch.Generator, run: int) -> Tensor:
    """Each pixel one unit in the last place up or down; the first run has them as they are."""
    if run == 0:
        return pixels_NCHW
    least_NCHW = pixels_NCHW.clamp(min=1)  # below one grey level the unit of one grey level: a black image moves too
    step_NCHW = torch.nextafter(least_NCHW, torch.tensor(torch.inf)) - least_NCHW
    return pixels_NCHW + step_NCHW * (2 * torch.randint(0, 2, pixels_NCHW.shape, generator=generator) - 1)
