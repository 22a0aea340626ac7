"""Images that are decoded at each use, for sets that neither memory nor disk can hold decoded.

A batch is decoded in threads (PIL releases the interpreter lock), so that all cores work on it; whoever trains on it asks for
the next batch before it needs it.

Shapes: N images of the set, B of a batch, C channels, H height, W width.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from torch import LongTensor, Tensor

from toolkit.bundle import Preprocessing
from toolkit.data.images import ImageSet
from toolkit.data.preprocessing import render
from toolkit.data.shard_order import ShardOrder
from toolkit.data.stored import Stored

NUM_FETCHING = 8  # files at a time: a store answers many requests as fast as one


class Images(Protocol):
    """Labelled images that can be read by index, decoded before (`Pixels`) or now (`Undecoded`)."""

    @property
    def targets_N(self) -> LongTensor: ...  # noqa: N802
    @property
    def keys(self) -> tuple[str, ...]: ...
    @property
    def slices(self) -> tuple[str, ...]: ...
    @property
    def labels(self) -> tuple[str, ...]: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def shards(self) -> ShardOrder | None: ...

    def __len__(self) -> int: ...

    def read(self, indices_N: Tensor) -> Tensor:
        """The images at `indices_N`, uint8 (B, C, H, W)."""
        ...


class Undecoded:
    """The images of a set, rendered when they are read."""

    def __init__(self, images: ImageSet, preprocessing: Preprocessing) -> None:
        self.images, self.preprocessing = images, preprocessing
        self.targets_N = self.images.targets_N()
        self.keys = tuple(sample.key for sample in self.images.samples)
        self.slices = tuple(sample.slice for sample in self.images.samples)
        self.labels, self.shards = images.labels, images.shard_order()
        self.shape = (len(self.keys), preprocessing.num_channels, *preprocessing.size_px)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self._threads = ThreadPoolExecutor(cores, thread_name_prefix="decoding")
        self._fetching = ThreadPoolExecutor(NUM_FETCHING, thread_name_prefix="fetching")

    def __len__(self) -> int:
        return len(self.keys)

    def prepare(self, indices_N: Tensor) -> None:
        """Begin to fetch what the images at `indices_N` lie in, where that is a store; what fails is told when it is read."""
        sources = [self.images.samples[i].source for i in indices_N.tolist()]
        places = {getattr(source, "shard", source): source for source in sources if isinstance(source, Stored)}
        for source in places.values():
            self._fetching.submit(source.prepare)

    def read(self, indices_N: Tensor) -> Tensor:
        """The images at `indices_N`, uint8 (B, C, H, W). Raises `InputRefused`, naming the file, for one that is damaged."""
        chosen: Sequence[int] = indices_N.tolist()
        into_BCHW = np.empty((len(chosen), *self.shape[1:]), dtype=np.uint8)

        def load(place: int) -> None:
            pixels_HWC = render(self.images.samples[chosen[place]].source, self.preprocessing)
            into_BCHW[place] = pixels_HWC.transpose(2, 0, 1)

        list(self._threads.map(load, range(len(chosen))))
        return torch.from_numpy(into_BCHW)
