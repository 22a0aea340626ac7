"""A data set decoded once and kept as uint8: the fastest loader is the one that has nothing left to do.

Images at a model's input size take C·H·W bytes each (37 kB at 112 px), so most data sets of an upgrade fit in memory, and
those that do not are memory-mapped from a cache on disk.

Shapes: N images, C channels, H height, W width.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import LongTensor, Tensor

from toolkit.bundle import Preprocessing
from toolkit.data.cache import cached_pixels
from toolkit.data.images import ImageSet, Sample
from toolkit.data.preprocessing import render
from toolkit.data.shard_order import ShardOrder
from toolkit.data.threads import map_in_threads
from toolkit.errors import InputRefused

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Pixels:
    """Rendered images: uint8 pixels 0..255 (N, C, H, W), their classes (int64), keys and slices; `labels[k]` names class k.

    `shards`: how training goes through them, where they come from shards.
    """

    images_NCHW: Tensor
    targets_N: LongTensor
    keys: tuple[str, ...]
    slices: tuple[str, ...]
    labels: tuple[str, ...]
    shards: ShardOrder | None = None

    def __post_init__(self) -> None:
        if self.images_NCHW.dtype != torch.uint8 or self.images_NCHW.ndim != 4:
            raise ValueError(f"images must be uint8 (N, C, H, W), got {self.images_NCHW.dtype} {tuple(self.images_NCHW.shape)}")
        lengths = {len(self.images_NCHW), len(self.targets_N), len(self.keys), len(self.slices)}
        if len(lengths) != 1:
            raise ValueError(f"images, targets, keys and slices differ in length: {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W)."""
        return tuple(self.images_NCHW.shape)

    def read(self, indices_N: Tensor) -> Tensor:
        """The images at `indices_N`, uint8 (n, C, H, W)."""
        return self.images_NCHW.index_select(0, indices_N)

    def to(self, device: torch.device | str) -> "Pixels":
        """The same images with pixels and classes on `device`."""
        return replace(self, images_NCHW=self.images_NCHW.to(device), targets_N=self.targets_N.to(device))

    def take(self, indices: Sequence[int] | Tensor | np.ndarray) -> "Pixels":
        """The images at `indices`, in that order."""
        chosen = torch.as_tensor(indices, dtype=torch.int64, device=self.images_NCHW.device).flatten()
        positions = chosen.tolist()
        return Pixels(
            images_NCHW=self.images_NCHW[chosen],
            targets_N=self.targets_N[chosen],  # pyright: ignore[reportArgumentType]
            keys=tuple(self.keys[i] for i in positions),
            slices=tuple(self.slices[i] for i in positions),
            labels=self.labels,
            shards=None if self.shards is None else self.shards.take(chosen.cpu()),
        )


def load_pixels(
    images: ImageSet, preprocessing: Preprocessing, *, max_unreadable: float = 0.01, cache: Path | None = None
) -> Pixels:
    """Decode and resize every image in threads. Unreadable ones are logged by name and left out.

    With `cache` (a directory) the pixels are kept there and memory-mapped, and a later call for the same images decodes none.
    Raises `InputRefused` when there are no images, or when more than the share `max_unreadable` (0..1) cannot be read.
    """
    if not images.samples:
        raise InputRefused(f"data '{images.name}' has no images to load: check its split, slices and folder.")
    shape = (len(images), preprocessing.num_channels, *preprocessing.size_px)

    def decode(into_NCHW: np.ndarray) -> list[str]:
        return _render_all(images, preprocessing, into_NCHW)

    if cache is None:
        images_NCHW = np.empty(shape, dtype=np.uint8)
        reasons = decode(images_NCHW)
    else:
        images_NCHW, reasons = cached_pixels(cache, images, preprocessing, shape=shape, decode=decode)
    _report_unreadable(images, reasons, max_unreadable)
    kept = [i for i, reason in enumerate(reasons) if not reason]
    samples = [images.samples[i] for i in kept]
    return Pixels(
        images_NCHW=torch.from_numpy(images_NCHW if len(kept) == len(images) else images_NCHW[kept]),
        targets_N=torch.tensor([sample.target for sample in samples], dtype=torch.int64),  # pyright: ignore[reportArgumentType]
        keys=tuple(sample.key for sample in samples),
        slices=tuple(sample.slice for sample in samples),
        labels=images.labels,
        shards=replace(images, samples=tuple(samples)).shard_order(),
    )


def _render_all(images: ImageSet, preprocessing: Preprocessing, into_NCHW: np.ndarray) -> list[str]:
    def load(indexed: tuple[int, Sample]) -> str:
        index, sample = indexed
        try:
            into_NCHW[index] = render(sample.source, preprocessing).transpose(2, 0, 1)
        except InputRefused as error:
            return str(error)
        return ""

    return list(map_in_threads(load, list(enumerate(images.samples)), description=f"Decoding {images.name}"))


def _report_unreadable(images: ImageSet, reasons: Sequence[str], max_unreadable: float) -> None:
    bad = [(sample.key, reason) for sample, reason in zip(images.samples, reasons, strict=True) if reason]
    if not bad:
        return
    shown = "\n".join(f"  {key}: {reason}" for key, reason in bad[:5]) + ("\n  ..." if len(bad) > 5 else "")
    message = f"data '{images.name}': {len(bad)} of {len(images)} images cannot be read:\n{shown}"
    if len(bad) > max_unreadable * len(images) or len(bad) == len(images):
        raise InputRefused(f"{message}\nAt most {max_unreadable:.1%} may be unreadable: mend or remove them.")
    logger.warning("%s\nThey are left out.", message)
