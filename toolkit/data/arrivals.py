"""Data as it arrives in production: lines of a log that grows, images dropped into a folder or an object store.

A place is a file, a folder or any URL that fsspec knows (`s3://bucket/prefix`, `memory://log`). What was read is remembered
in marks, plain data that the reader keeps with its counts and saves in one step, so that everything is counted once whatever
happens between two passes. A log that is renamed when it is full goes on under its new name, recognised by its first line;
a line without its end is left for the next pass; an image that cannot be decoded yet gets a second look when it has grown.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from toolkit.data.decoding import EXTENSIONS
from toolkit.data.places import opened
from toolkit.errors import EnvironmentProblem, InputRefused

LOGS = (".jsonl", ".ndjson", ".log")
COMPRESSED = (".gz", ".zst", ".bz2", ".xz", ".zip")
LINES_A_BATCH = 5000
IMAGES_A_BATCH = 128
BLOCK_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Marks:
    """What was read: bytes of each log (`offset`, its first line's digest `head`), names of images, images to look at again."""

    logs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    images: tuple[str, ...] = ()
    unreadable: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Batch:
    """Some lines, or some images by name, that arrived together; `marks` are what to remember once they are counted."""

    name: str
    marks: Marks
    lines: tuple[bytes, ...] = ()
    images: Mapping[str, bytes] = field(default_factory=dict)


class Place:
    """Where data arrives. Raises `UsageError` for an unknown protocol, `EnvironmentProblem` where its package is missing."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.system, self.root = opened(url, f"The source {url}")

    def batches(self, marks: Marks) -> Iterator[Batch]:
        """What has arrived since `marks`, first name first, in pieces. Raises `InputRefused` where there is no such place."""
        sizes = self._sizes()
        for name, size in sizes.items():
            if _is_log(name) or (name == self.root and not _is_image(name)):
                for batch in self._lines(name, size, marks, sizes):
                    marks = batch.marks
                    yield batch
        yield from self._images([name for name, size in sizes.items() if size and _is_image(name)], sizes, marks)

    def _sizes(self) -> dict[str, int]:
        try:
            self.system.invalidate_cache()
            if not self.system.exists(self.root):
                raise InputRefused(f"source {self.url} does not exist: make it, or correct source=...")
            found = self.system.find(self.root, detail=True)
        except (OSError, PermissionError) as error:
            raise EnvironmentProblem(f"source {self.url} cannot be listed ({error}).") from error
        assert isinstance(found, dict)
        visible = {name: int(facts["size"]) for name, facts in found.items() if not PurePosixPath(name).name.startswith(".")}
        return dict(sorted(visible.items()))

    def _read(self, name: str, start: int, end: int) -> bytes:
        try:
            return self.system.cat_file(name, start=start, end=end)
        except (OSError, PermissionError) as error:
            raise EnvironmentProblem(f"{name} cannot be read ({error}).") from error

    def _lines(self, name: str, size: int, marks: Marks, sizes: Mapping[str, int]) -> Iterator[Batch]:
        known = marks.logs.get(name)
        if size == 0 or (known is not None and known["offset"] == size):
            return
        head = _head(self._read(name, 0, min(size, BLOCK_BYTES)))
        if not head:
            return
        logs = dict(marks.logs)
        if known is None or known["head"] != head:
            logs = _renamed(logs, name, head, sizes, lambda other: _head(self._read(other, 0, min(sizes[other], BLOCK_BYTES))))
        offset = logs.setdefault(name, {"offset": 0, "head": head})["offset"]
        while offset < size:
            block = self._read(name, offset, min(size, offset + BLOCK_BYTES))
            lines, length = _complete(block, is_last=offset + len(block) >= size)
            if not length:
                return
            offset += length
            logs = {**logs, name: {"offset": offset, "head": head}}
            marks = replace(marks, logs=logs)
            yield Batch(name, marks, lines=tuple(lines))

    def _images(self, names: list[str], sizes: Mapping[str, int], marks: Marks) -> Iterator[Batch]:
        seen = set(marks.images)
        fresh = [name for name in names if name not in seen and marks.unreadable.get(name) != sizes[name]]
        for start in range(0, len(fresh), IMAGES_A_BATCH):
            chosen = fresh[start : start + IMAGES_A_BATCH]
            contents = {name: self._read(name, 0, sizes[name]) for name in chosen}
            unreadable = {other: size for other, size in marks.unreadable.items() if other not in contents}
            marks = replace(marks, images=(*marks.images, *chosen), unreadable=unreadable)
            yield Batch(chosen[-1], marks, images=contents)


def to_look_at_again(marks: Marks, names: Mapping[str, int]) -> Marks:
    """`marks` with the images `names` (name -> bytes) open again: they are read once more if they change in size."""
    kept = tuple(name for name in marks.images if name not in names)
    return replace(marks, images=kept, unreadable={**marks.unreadable, **names})


def _is_log(name: str) -> bool:
    """Whether a file is a log, also one that rotation has numbered (`serving.log.1`)."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    return any(suffix in LOGS for suffix in suffixes) and suffixes[-1] not in COMPRESSED


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in EXTENSIONS


def _head(block: bytes) -> str:
    """The digest of the first complete line; empty where there is none yet."""
    line, end, _ = block.partition(b"\n")
    return hashlib.sha256(line).hexdigest()[:16] if end or line.rstrip().endswith(b"}") else ""


def _renamed(
    logs: dict[str, Any], name: str, head: str, sizes: Mapping[str, int], head_of: Callable[[str], str]
) -> dict[str, Any]:
    """The marks after a rotation: a log known under a name that now is gone or holds another log goes on as `name`."""
    left = {other: mark for other, mark in logs.items() if other != name}
    for other, mark in left.items():
        if mark["head"] == head and (other not in sizes or head_of(other) != head):
            del left[other]
            return {**left, name: mark, **({other: logs[name]} if name in logs else {})}
    if name in logs:  # another log under a known name: what was known may turn up under a later name
        left[f"{name} (before)"] = logs[name]
    return left


def _complete(block: bytes, *, is_last: bool) -> tuple[list[bytes], int]:
    """Up to `LINES_A_BATCH` whole lines from the beginning of a block, and how many bytes they take.

    The last line of a file may lack its newline when it is a whole object.
    """
    lines, length = [], 0
    while len(lines) < LINES_A_BATCH:
        end = block.find(b"\n", length)
        if end < 0:
            rest = block[length:]
            if is_last and rest.rstrip().endswith(b"}") and rest.count(b"{") == rest.count(b"}"):
                lines.append(rest)
                length = len(block)
            elif not is_last and not length:
                raise InputRefused(f"a line of more than {BLOCK_BYTES} bytes is no record of a prediction.")
            break
        lines.append(block[length:end])
        length = end + 1
    return [line for line in lines if line.strip()], length
