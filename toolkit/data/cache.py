"""Rendered pixels on disk, memory-mapped, so that a second run decodes nothing and a large set need not fit in memory.

The key hashes what pixels depend on (content in order, preprocessing, decoder version): nothing is ever invalidated, new data
gets a new directory, relabelled data the old one. A directory appears whole, by a rename, or not at all; of two runs that need
the same pixels the second waits for the first. The least recently used entries make room for new ones; a run that has one
mapped keeps it, for a removed file lives as long as its mapping.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL

from toolkit.bundle import Preprocessing
from toolkit.bundle.atomic import clear_leftovers, environment_errors, locked, staging_directory, sync_directory, sync_file
from toolkit.bundle.machine import allowed_bytes
from toolkit.data.images import ImageSet

logger = logging.getLogger(__name__)

PIXELS = "images_NCHW.npy"
REASONS = "unreadable.json"
VERSION = 1

Decode = Callable[[np.ndarray], list[str]]


def cached_pixels(
    directory: Path, images: ImageSet, preprocessing: Preprocessing, *, shape: tuple[int, ...], decode: Decode
) -> tuple[np.ndarray, list[str]]:
    """The pixels of `images`, uint8 of `shape` (N, C, H, W), mapped from `directory`, and why each is unreadable (or "").

    `decode` fills an array and returns those reasons; it is called when the cache has no entry. Changes to the mapped array
    stay in this process. Raises `EnvironmentProblem` when the cache cannot be written, `InputRefused` for vanished files.
    """
    entry = directory / _key(images, preprocessing)
    found = _opened(entry, shape)
    if found is not None:
        return found
    with locked(directory / ".lock"):
        found = _opened(entry, shape)  # another run may have made it meanwhile
        if found is not None:
            return found
        clear_leftovers(directory)
        _make_room(directory, int(np.prod(shape)))
        _write(entry, shape, decode)
    found = _opened(entry, shape)
    assert found is not None, f"{entry} was just written"
    return found


def limit_bytes(directory: Path) -> int:
    """How large the cache in `directory` may grow: TOOLKIT_CACHE_GIB (default 32) and at most half of the disk's free space."""
    return allowed_bytes(directory, sum(_size_bytes(entry) for entry in _entries(directory)))


def _write(entry: Path, shape: tuple[int, ...], decode: Decode) -> None:
    directory = entry.parent
    with staging_directory(directory) as staging, environment_errors(directory):
        images_NCHW = np.lib.format.open_memmap(staging / PIXELS, mode="w+", dtype=np.uint8, shape=shape)
        reasons = decode(images_NCHW)
        images_NCHW.flush()
        del images_NCHW
        (staging / REASONS).write_text(json.dumps(reasons))
        sync_file(staging / PIXELS)
        sync_file(staging / REASONS)
        sync_directory(staging)
        os.chmod(staging, 0o755)
        staging.rename(entry)
        sync_directory(directory)


def _entries(directory: Path) -> list[Path]:
    """The cache's entries, least recently used first."""
    used = []
    for entry in directory.glob("*/"):
        if not entry.name.startswith("."):
            with contextlib.suppress(FileNotFoundError):  # another run is making room
                used.append((entry.stat().st_mtime_ns, entry))
    return [entry for _, entry in sorted(used)]


def _size_bytes(entry: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return (entry / PIXELS).stat().st_size
    return 0


def _make_room(directory: Path, num_bytes: int) -> None:
    """Remove the least recently used entries until `num_bytes` more fit into the limit."""
    entries, limit = _entries(directory), limit_bytes(directory)
    held = sum(_size_bytes(entry) for entry in entries)
    for entry in entries:
        if held + num_bytes <= limit:
            return
        held -= _size_bytes(entry)
        _remove(entry)


def _opened(entry: Path, shape: tuple[int, ...]) -> tuple[np.ndarray, list[str]] | None:
    if not entry.is_dir():
        return None
    try:
        images_NCHW = np.load(entry / PIXELS, mmap_mode="c", allow_pickle=False)
        reasons = json.loads((entry / REASONS).read_text())
        sound = images_NCHW.shape == shape and images_NCHW.dtype == np.uint8 and len(reasons) == shape[0]
    except (OSError, ValueError) as error:
        logger.warning("the cached pixels in %s are damaged (%s): decoding again", entry, error)
        sound = False
    if not sound:
        _remove(entry)
        return None
    with contextlib.suppress(OSError):
        os.utime(entry)  # its last use
    logger.info("pixels mapped from %s", entry)
    return images_NCHW, reasons


def _remove(entry: Path) -> None:
    with environment_errors(entry):
        shutil.rmtree(entry, ignore_errors=True)


def _key(images: ImageSet, preprocessing: Preprocessing) -> str:
    facts = [VERSION, PIL.__version__, _rendering(preprocessing), images.content_digests()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _rendering(preprocessing: Preprocessing) -> dict[str, object]:
    plain = dataclasses.asdict(preprocessing)
    return {name: value for name, value in plain.items() if name not in ("mean", "std", "value_range")}
