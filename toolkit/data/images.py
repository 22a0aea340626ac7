"""A labelled set of images as a value: where each image is, what it shows, which split it belongs to.

Nothing is decoded here, so a set of a million files is cheap to build, filter and split. Its fingerprint hashes what
matters to a model (content, label, split) and nothing that may change without changing the data (paths, order, machine):
it goes into a bundle's lineage, and equal fingerprints let a stage reuse what it made before.
"""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import LongTensor

from toolkit.data.shard_order import ShardOrder, Shuffle
from toolkit.data.stored import Source, Stored
from toolkit.data.threads import map_in_threads
from toolkit.errors import InputRefused, UsageError, unknown_name

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True, eq=False)
class Sample:
    """One image: a unique `key` people can read, its class, its split, its file (`Stored`: elsewhere) or uint8 pixels
    (HW or HWC), its slice.

    A slice is a part of the data that is reported on its own (`mono`, `night`, `camera-2`); empty when there is none.
    """

    key: str
    target: int
    split: Split
    source: Source
    slice: str = ""

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise UsageError(f"image '{self.key}' has the split '{self.split}'; choose train, val or test.")
        if isinstance(self.source, np.ndarray) and (self.source.dtype != np.uint8 or self.source.ndim not in (2, 3)):
            raise InputRefused(
                f"image '{self.key}' is a {self.source.dtype} array of shape {self.source.shape}: "
                "give uint8 pixels (height, width) or (height, width, channels)."
            )


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with their labels: `labels[k]` names target k. `licence` is shown to whoever trains on or ships them.
    `shuffle`: how training mixes images that lie in shards; None for images that are read in any order.

    Raises `InputRefused` when two samples share a key, two labels a name, or a target has no label.
    """

    name: str
    labels: tuple[str, ...]
    samples: tuple[Sample, ...]
    licence: str = ""
    shuffle: Shuffle | None = None

    def __post_init__(self) -> None:
        if len(set(self.labels)) != len(self.labels):
            raise InputRefused(f"data '{self.name}': two labels have the same name in {list(self.labels)}.")
        seen: set[str] = set()
        for sample in self.samples:
            if sample.key in seen:
                raise InputRefused(f"data '{self.name}': two images have the key '{sample.key}'. Keys must be unique.")
            if not 0 <= sample.target < len(self.labels):
                raise InputRefused(
                    f"data '{self.name}': image '{sample.key}' has target {sample.target}, but there are "
                    f"{len(self.labels)} labels (0 to {len(self.labels) - 1})."
                )
            seen.add(sample.key)

    def __len__(self) -> int:
        return len(self.samples)

    def split(self, name: str) -> "ImageSet":
        """The images of one split, all labels kept. Raises `UsageError` for another name than train, val, test."""
        if name not in SPLITS:
            raise unknown_name("split", name, SPLITS)
        return replace(self, samples=tuple(sample for sample in self.samples if sample.split == name))

    def where(self, slices: Sequence[str]) -> "ImageSet":
        """The images of the named slices, all labels kept. Raises `UsageError` for a slice that no image has."""
        wanted = set(slices)
        known = set(self.slices())
        for name in sorted(wanted - known):
            raise unknown_name(f"slice of data '{self.name}'", name, known)
        return replace(self, samples=tuple(sample for sample in self.samples if sample.slice in wanted))

    def slices(self) -> tuple[str, ...]:
        """The names of the slices, sorted; an image without a slice adds none."""
        return tuple(sorted({sample.slice for sample in self.samples if sample.slice}))

    def targets_N(self) -> LongTensor:  # noqa: N802
        """The class of each image, int64, in 0..K-1."""
        return torch.tensor([sample.target for sample in self.samples], dtype=torch.int64)  # pyright: ignore[reportReturnType]

    def shard_order(self) -> ShardOrder | None:
        """How training goes through the images where they lie in shards; None where any order does."""
        if self.shuffle is None or not self.samples:
            return None
        numbers: dict[Any, int] = {}
        shards = [numbers.setdefault(getattr(sample.source, "shard", None), len(numbers)) for sample in self.samples]
        return ShardOrder(torch.tensor(shards, dtype=torch.int64), self.shuffle)  # pyright: ignore[reportArgumentType]

    def fingerprint(self) -> str:
        """64 hexadecimal digits that stand for every image's content, label and split, whatever their order or place.

        Reads every file once (cached per instance, and per file while it is unchanged). Raises `InputRefused` naming a
        file that cannot be read.
        """
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        digests = self.content_digests()
        lines = sorted(f"{digest} {sample.target} {sample.split}" for digest, sample in zip(digests, self.samples, strict=True))
        return hashlib.sha256("\n".join([repr(self.labels), *lines]).encode()).hexdigest()

    def content_digests(self) -> list[str]:
        """The sha256 of each image's content (a file's bytes, an array's shape and pixels), in the order of `samples`."""
        return content_digests(self.samples)


def content_digests(samples: Sequence[Sample]) -> list[str]:
    """The sha256 of each sample's content, in order, read in threads."""
    return list(map_in_threads(content_digest, samples, description="Reading image files"))


def content_digest(sample: Sample) -> str:
    """The sha256 of one image's content, 64 hexadecimal digits. Raises `InputRefused` when the file cannot be read."""
    source = sample.source
    if isinstance(source, np.ndarray):
        return hashlib.sha256(f"{source.shape}".encode() + np.ascontiguousarray(source).tobytes()).hexdigest()
    if isinstance(source, Stored):
        return source.digest()
    try:
        status = source.stat()
        return _file_digest(str(source), status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise InputRefused(
            f"image '{sample.key}': {source} cannot be read ({error.strerror or error}). "
            "Restore the file or remove it from the data."
        ) from error


@functools.lru_cache(maxsize=1 << 20)
def _file_digest(path: str, num_bytes: int, modified_ns: int) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
