"""Mixup (Zhang et al., ICLR 2018) and CutMix (Yun et al., ICCV 2019), each sample with a share of its own.

The draws are a pure function of (seed, step, rank), so a resumed run repeats them with no state to keep.

Shapes: N samples, C channels, H height, W width (pixels).
"""

import numpy as np
import torch
from torch import Tensor

from toolkit.training.loss import Targets
from toolkit.training.transfer import sent


def mix(
    images_NCHW: Tensor, targets_N: Tensor, *, mixup: float, cutmix: float, draw: tuple[int, int, int]
) -> tuple[Tensor, Targets]:
    """Mix each image with another of the batch; `draw` is (seed, step, rank).

    `mixup` and `cutmix` are Beta alphas; with both above zero each batch takes one of them at random. The share of a
    sample's own target is its exact share of the pixels.
    """
    random = np.random.default_rng(draw)
    num_samples, _, height, width = images_NCHW.shape
    device = images_NCHW.device
    partner_N = sent(torch.from_numpy(random.permutation(num_samples)), device)
    cut = cutmix > 0 and (mixup == 0 or random.random() < 0.5)
    own_N = random.beta(*(2 * [cutmix if cut else mixup]), size=num_samples)
    images_NCHW = images_NCHW.float()
    if cut:
        keep_NHW, own_N = _boxes(own_N, height, width, random)
        keep_N1HW = sent(torch.from_numpy(keep_NHW[:, None]), device)
        mixed_NCHW = torch.where(keep_N1HW, images_NCHW, images_NCHW[partner_N])
    share_N = sent(torch.from_numpy(own_N).float(), device)
    if not cut:
        mixed_NCHW = torch.lerp(images_NCHW[partner_N], images_NCHW, share_N[:, None, None, None])
    return mixed_NCHW, Targets(targets_N, targets_N[partner_N], share_N)


def _boxes(own_N: np.ndarray, height: int, width: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Where each image keeps its own pixels (bool NHW), a box of area share 1 - own cut at a random place; exact shares."""
    side_N = np.sqrt(1 - own_N)
    num_samples = len(own_N)

    def span(size: int) -> tuple[np.ndarray, np.ndarray]:
        centre_N, half_N = random.integers(size, size=num_samples), side_N * size / 2
        return np.clip(np.round(centre_N - half_N), 0, size), np.clip(np.round(centre_N + half_N), 0, size)

    (top_N, bottom_N), (left_N, right_N) = span(height), span(width)
    rows, columns = np.arange(height), np.arange(width)
    inside_NH = (rows >= top_N[:, None]) & (rows < bottom_N[:, None])
    inside_NW = (columns >= left_N[:, None]) & (columns < right_N[:, None])
    keep_NHW = ~(inside_NH[:, :, None] & inside_NW[:, None, :])
    return keep_NHW, keep_NHW.mean((1, 2))
