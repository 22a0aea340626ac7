"""A data set as tar shards: for stores and networks that give few large files faster than many small ones.

Images are dealt to the shards at random, so that each shard is a sample of its split: training reads a few shards at a time.
"""

import contextlib
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from toolkit.bundle.atomic import environment_errors, staging_directory, sync_directory, sync_file
from toolkit.data.images import SPLITS, ImageSet, Sample
from toolkit.data.stored import Stored
from toolkit.data.threads import map_in_threads
from toolkit.errors import InputRefused, UsageError


def pack(images: ImageSet, directory: Path | str, *, shard_bytes: int = 256 * 2**20, seed: int = 0) -> list[Path]:
    """Write `images` as plain tars `<split>-000000.tar` of about `shard_bytes` each, and `labels.txt`, into a new directory.

    Read by `data=shards`, they are the same data set: keys, labels, splits, slices, and for files the fingerprint, as they are
    copied byte for byte (pixels in memory become PNGs). The directory appears whole or not at all; the same images and seed
    give the same bytes. Raises `UsageError` where `directory` is taken, `InputRefused` for a file that cannot be read.
    """
    target = Path(directory).expanduser().absolute()
    if target.exists() or shard_bytes < 1:
        raise UsageError(
            f"{target} is there already, or shard_bytes={shard_bytes} is below 1: give a new directory, and a size."
        )
    with staging_directory(target.parent) as staging, environment_errors(target):
        names = [name for split in SPLITS for name in _write_split(images, split, staging, shard_bytes, seed)]
        (staging / "labels.txt").write_text("".join(f"{label}\n" for label in images.labels), encoding="utf-8")
        sync_file(staging / "labels.txt")
        sync_directory(staging)
        os.chmod(staging, 0o755)
        staging.rename(target)
        sync_directory(target.parent)
    return [target / name for name in names]


def _write_split(images: ImageSet, split: str, directory: Path, shard_bytes: int, seed: int) -> list[str]:
    samples = sorted(images.split(split).samples, key=lambda sample: _rank(sample, seed))
    contents = map_in_threads(_content, samples, description=f"Packing {split}")
    names: list[str] = []
    with contextlib.ExitStack() as opened:
        tar: tarfile.TarFile | None = None
        for number, (sample, (kind, content)) in enumerate(zip(samples, contents, strict=True)):
            if tar is None or tar.offset >= shard_bytes:
                opened.close()
                names.append(f"{split}-{len(names):06d}.tar")
                tar = opened.enter_context(tarfile.open(directory / names[-1], "w", format=tarfile.PAX_FORMAT))
            facts = {"label": images.labels[sample.target], "split": split, "slice": sample.slice, "key": sample.key}
            for ending, part in ((kind, content), ("json", json.dumps(facts).encode())):
                member = tarfile.TarInfo(f"{number:08d}.{ending}")
                member.size = len(part)
                tar.addfile(member, io.BytesIO(part))
    for name in names:
        sync_file(directory / name)
    return names


def _rank(sample: Sample, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {sample.key}".encode()).digest()


def _content(sample: Sample) -> tuple[str, bytes]:
    """How the image's file name ends, and its bytes."""
    source = sample.source
    if isinstance(source, np.ndarray):
        stream = io.BytesIO()
        Image.fromarray(source.squeeze(-1) if source.ndim == 3 and source.shape[2] == 1 else source).save(stream, "PNG")
        return "png", stream.getvalue()
    try:
        return Path(str(source)).suffix[1:].lower(), source.read() if isinstance(source, Stored) else source.read_bytes()
    except OSError as error:
        raise InputRefused(f"image '{sample.key}': {source} cannot be read ({error.strerror or error}).") from error
