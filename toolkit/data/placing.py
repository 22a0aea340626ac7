"""Where the decoded images of a training lie: mapped from a cache on disk, in memory, or nowhere.

Decoding is what a second run repeats for nothing, and what keeps an accelerator waiting, so whatever fits is decoded once.
"""

import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np

from toolkit.bundle import Preprocessing
from toolkit.data.cache import limit_bytes
from toolkit.data.images import ImageSet
from toolkit.data.pixels import Pixels, load_pixels
from toolkit.data.undecoded import Images, Undecoded

SHARE_OF_MEMORY = 0.4  # training and validation images, the net and its activations share it


def decoded_pixels(images: ImageSet, preprocessing: Preprocessing, *, cache: Path) -> Pixels:
    """The images, decoded: memory-mapped from `cache` where they are files and fit there, else in memory.

    Raises as `load_pixels` does.
    """
    files = any(not isinstance(sample.source, np.ndarray) for sample in images.samples)
    mapped = files and _num_bytes(images, preprocessing) <= limit_bytes(cache)
    return load_pixels(images, preprocessing, cache=cache if mapped else None)


def place_pixels(
    images: ImageSet,
    preprocessing: Preprocessing,
    *,
    cache: Path,
    unreadable: Collection[str] = (),
    memory_bytes: int | None = None,
) -> Images:
    """The images as a training reads them: decoded where the disk's `cache` or memory can hold them, else at each use.

    Those with a key in `unreadable` are left out. `memory_bytes`: what they may take in memory (default: a share of what is
    free). Raises as `load_pixels` does.
    """
    skipped = set(unreadable)
    images = replace(images, samples=tuple(sample for sample in images.samples if sample.key not in skipped))
    num_bytes = _num_bytes(images, preprocessing)
    memory_bytes = int(SHARE_OF_MEMORY * free_bytes()) if memory_bytes is None else memory_bytes
    if num_bytes <= max(memory_bytes, limit_bytes(cache)):
        return decoded_pixels(images, preprocessing, cache=cache)
    return Undecoded(images, preprocessing)


def _num_bytes(images: ImageSet, preprocessing: Preprocessing) -> int:
    height_px, width_px = preprocessing.size_px
    return len(images) * preprocessing.num_channels * height_px * width_px


def free_bytes() -> int:
    """What the machine can still give without swapping."""
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
