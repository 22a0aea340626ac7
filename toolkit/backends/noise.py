"""What float32 itself costs on these images: the noise that the error of an exported or an old model is held against.

Rounding noise is drawn, not guessed: the untouched module runs in float32 on the images and on copies of them moved by one
unit in the last place, and its distance from the float64 run is the floor. The floor is an image's own, because errors of one
model vary a thousandfold between images; but with few outputs a single image's floor may be small by luck, so the median
over the images bounds it from below.

Legend: N images, C channels, H height, W width, K labels, R float32 runs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from toolkit.backends.run_eager import EagerRunner

EPSILON = 2.0**-24
"""Half a unit in the last place of float32, relative."""

REFERENCE_BATCH = 32

Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Noise:
    """The float64 logits, and those of R float32 runs of which the first had the images untouched."""

    double_NK: np.ndarray
    single_RNK: np.ndarray

    @property
    def finite(self) -> bool:
        """Whether every reference value is a number."""
        return bool(np.isfinite(self.double_NK).all() and np.isfinite(self.single_RNK).all())

    @property
    def scale_N(self) -> np.ndarray:  # noqa: N802
        """Root mean square of each image's logits."""
        return rms(self.double_NK)

    @property
    def floor_N(self) -> np.ndarray:  # noqa: N802
        """Root mean square of float32's error on each image over runs and labels, at least the median image's."""
        own_N = np.sqrt(np.mean(np.square(self.single_RNK - self.double_NK), axis=(0, 2)))
        return np.maximum(own_N, np.median(own_N))

    @property
    def rounding_N(self) -> np.ndarray:  # noqa: N802
        """The error that rounding an output alone may cost: four halves of a unit in the last place."""
        return 4 * EPSILON * self.scale_N

    @property
    def float32_share(self) -> float:
        """How far float32 is from float64 on the median image, as a share of its logits."""
        return float(np.median(self.floor_N / np.maximum(self.scale_N, np.finfo(np.float64).tiny)))

    def ratio_N(self, logits_NK: np.ndarray) -> np.ndarray:  # noqa: N802
        """The error of `logits_NK` on each image in floors, what rounding costs taken off."""
        error_N = rms(logits_NK - self.double_NK)
        return np.maximum(error_N - self.rounding_N, 0) / np.maximum(self.floor_N, np.finfo(np.float64).tiny)

    def disagreements(self, logits_NK: np.ndarray, *, k: float, top: int = 1) -> tuple[list[int], list[int]]:
        """The images whose first `top` labels differ from float64's, in kind or order: (decisions changed, ties).

        A tie is where every two labels that changed places lie, in float64, no further apart than `k` times the error that
        float32 was measured to make in their difference.
        """
        ours_NT, theirs_NT = (
            np.argsort(-values_NK, axis=1, kind="stable")[:, :top] for values_NK in (logits_NK, self.double_NK)
        )
        changed, ties = [], []
        for n in np.flatnonzero((ours_NT != theirs_NT).any(1)).tolist():
            swapped = [
                (above, below)
                for above in theirs_NT[n]
                for below in ours_NT[n]
                if self.double_NK[n, above] > self.double_NK[n, below] and logits_NK[n, above] <= logits_NK[n, below]
            ]
            (ties if all(self._tied(n, above, below, k) for above, below in swapped) else changed).append(n)
        return changed, ties

    def _tied(self, n: int, above: int, below: int, k: float) -> bool:
        margin = self.double_NK[n, above] - self.double_NK[n, below]
        margin_R = self.single_RNK[:, n, above] - self.single_RNK[:, n, below]
        noise = max(float(np.sqrt(np.mean(np.square(margin_R - margin)))), float(np.sqrt(2) * self.floor_N[n]))
        return bool(margin <= k * noise + 2 * self.rounding_N[n])


def measure_noise(reference: nn.Module, images_NCHW: np.ndarray, *, num_runs: int, seed: int = 0) -> Noise:
    """Run `reference` (deployed: pixels to logits) in float64 once and in float32 `num_runs` times, on one thread."""
    double, single = EagerRunner(reference, dtype="float64", threads=1), EagerRunner(reference, threads=1)
    batch = min(REFERENCE_BATCH, len(images_NCHW))
    double_NK = in_batches(double, images_NCHW, batch)
    random = np.random.default_rng(seed)
    moved = [moved_by_one_ulp(images_NCHW, random) for _ in range(num_runs - 1)]
    single_RNK = np.stack([in_batches(single, each_NCHW, batch) for each_NCHW in (images_NCHW, *moved)])
    return Noise(double_NK, single_RNK)


def moved_by_one_ulp(images_NCHW: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Each pixel one unit in the last place up or down; below one grey level, that of one grey level (a black image too)."""
    step_NCHW = np.spacing(np.maximum(np.abs(images_NCHW), np.float32(1)))
    return images_NCHW + step_NCHW * random.choice(np.array([-1, 1], np.float32), size=images_NCHW.shape)


def edge_images(shape_CHW: Sequence[int]) -> np.ndarray:
    """Inputs at the edges of the range (4, C, H, W): all black, all white, mid-grey, and a checkerboard of extremes."""
    black_CHW = np.zeros(tuple(shape_CHW), np.float32)
    board_CHW = (np.indices(black_CHW.shape).sum(0) % 2 * 255).astype(np.float32)
    return np.stack([black_CHW, black_CHW + 255, black_CHW + 128, board_CHW])


def in_batches(run: Run, images_NCHW: np.ndarray, batch: int) -> np.ndarray:
    """logits_NK in float64, computed exactly `batch` images at a time; the last batch is filled up from the first images."""
    num_images = len(images_NCHW)
    parts = [run(images_NCHW.take(range(start, start + batch), axis=0, mode="wrap")) for start in range(0, num_images, batch)]
    return np.concatenate(parts)[:num_images].astype(np.float64)


def rms(values_NK: np.ndarray) -> np.ndarray:
    """Root mean square over each image's outputs."""
    return np.sqrt(np.mean(np.square(values_NK), axis=1))
