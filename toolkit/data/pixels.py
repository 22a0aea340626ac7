"""A data set decoded once and kept as uint8: the fastest loader is the one that has nothing left to do.

Images at a model's input size take C·H·W bytes each (37 kB at 112 px), so most data sets of an upgrade fit in memory, and
those that do not are memory-mapped from a cache on disk.

Shapes: N images, C channels, H height, W width.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import LongTensor, Tensor

from toolkit.bundle import Preprocessing
from toolkit.data.images import ImageSet, Sample
from toolkit.data.preprocessing import render
from toolkit.data.threads import map_in_threads
from toolkit.errors import InputRefused

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Pixels:
    """Rendered images: uint8 pixels 0..255 (N, C, H, W), their classes (int64), keys and slices; `labels[k]` names class k."""

    images_NCHW: Tensor  # noqa: N815
    targets_N: LongTensor  # noqa: N815
    keys: tuple[str, ...]
    slices: tuple[str, ...]
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images_NCHW.dtype != torch.uint8 or self.images_NCHW.ndim != 4:
            raise ValueError(f"images must be uint8 (N, C, H, W), got {self.images_NCHW.dtype} {tuple(self.images_NCHW.shape)}")
        lengths = {len(self.images_NCHW), len(self.targets_N), len(self.keys), len(self.slices)}
        if len(lengths) != 1:
            raise ValueError(f"images, targets, keys and slices differ in length: {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, indices: Sequence[int] | Tensor | np.ndarray) -> "Pixels":
        """The images at `indices`, in that order."""
        chosen = torch.as_tensor(indices, dtype=torch.int64).flatten()
        positions = chosen.tolist()
        return Pixels(
            images_NCHW=self.images_NCHW[chosen],
            targets_N=self.targets_N[chosen],  # pyright: ignore[reportArgumentType]
            keys=tuple(self.keys[i] for i in positions),
            slices=tuple(self.slices[i] for i in positions),
            labels=self.labels,
        )


def load_pixels(images: ImageSet, preprocessing: Preprocessing, *, max_unreadable: float = 0.01) -> Pixels:
    """Decode and resize every image in threads. Unreadable ones are logged by name and left out.

    Raises `InputRefused` when there are no images, or when more than the share `max_unreadable` (0..1) cannot be read.
    """
    if not images.samples:
        raise InputRefused(f"data '{images.name}' has no images to load: check its split, slices and folder.")
    channels, (height_px, width_px) = preprocessing.num_channels, preprocessing.size_px
    images_NHWC = np.empty((len(images), height_px, width_px, channels), dtype=np.uint8)

    def load(indexed: tuple[int, Sample]) -> str:
        index, sample = indexed
        try:
            images_NHWC[index] = render(sample.source, preprocessing)
        except InputRefused as error:
            return str(error)
        return ""

    reasons = list(map_in_threads(load, list(enumerate(images.samples)), description=f"Decoding {images.name}"))
    kept = [i for i, reason in enumerate(reasons) if not reason]
    _report_unreadable(images, reasons, max_unreadable)
    if len(kept) < len(images):
        images_NHWC = images_NHWC[kept]
    samples = [images.samples[i] for i in kept]
    return Pixels(
        images_NCHW=torch.from_numpy(np.ascontiguousarray(images_NHWC.transpose(0, 3, 1, 2))),
        targets_N=torch.tensor([sample.target for sample in samples], dtype=torch.int64),  # pyright: ignore[reportArgumentType]
        keys=tuple(sample.key for sample in samples),
        slices=tuple(sample.slice for sample in samples),
        labels=images.labels,
    )


def _report_unreadable(images: ImageSet, reasons: Sequence[str], max_unreadable: float) -> None:
    bad = [(sample.key, reason) for sample, reason in zip(images.samples, reasons, strict=True) if reason]
    if not bad:
        return
    shown = "\n".join(f"  {key}: {reason}" for key, reason in bad[:5]) + ("\n  ..." if len(bad) > 5 else "")
    message = f"data '{images.name}': {len(bad)} of {len(images)} images cannot be read:\n{shown}"
    if len(bad) > max_unreadable * len(images) or len(bad) == len(images):
        raise InputRefused(f"{message}\nAt most {max_unreadable:.1%} may be unreadable: mend or remove them.")
    logger.warning("%s\nThey are left out.", message)
