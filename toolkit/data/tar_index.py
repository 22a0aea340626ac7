"""What lies where in a tar shard, so that its images can be read in any order without unpacking it.

A tar is read once from its beginning; the index (name, place, length and digest of each image, and its label) is kept for as
long as the shard is unchanged. Names follow WebDataset: what stands before the first dot of a file's name is the sample's
key, what stands behind says what it is (`jpg`, `cls`, `json`), and the files of a sample stand together.
"""

import contextlib
import hashlib
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from toolkit.bundle.atomic import write_atomic
from toolkit.bundle.machine import cache_directory
from toolkit.data.decoding import EXTENSIONS
from toolkit.data.downloads import RemoteFile, downloads
from toolkit.data.places import opened, store_errors
from toolkit.data.stored import Stored
from toolkit.errors import EnvironmentProblem, InputRefused

VERSION = 1
LARGEST_LABEL_BYTES = 1 << 20  # of a .cls or .json


@dataclass(frozen=True, slots=True)
class Entry:
    """One sample of a shard: `name` of its image file, which is `length` bytes from `start`; label; split, slice and a key
    of its own, or "".
    """

    name: str
    start: int
    length: int
    sha256: str
    label: str
    split: str = ""
    slice: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class Member(Stored):
    """The image file `name` inside the tar `shard`."""

    shard: Path | RemoteFile
    name: str
    start: int
    length: int
    sha256: str

    def __str__(self) -> str:
        return f"{self.shard}:{self.name}"

    def read(self) -> bytes:
        if isinstance(self.shard, RemoteFile):
            return self.shard.part(self.start, self.length)
        try:
            with self.shard.open("rb") as stream:
                content = os.pread(stream.fileno(), self.length, self.start)
        except OSError as error:
            raise InputRefused(f"{self} cannot be read ({error.strerror or error}): restore the shard.") from error
        if len(content) != self.length:
            raise InputRefused(f"{self} is cut short: the shard changed after it was indexed. Restore it or start anew.")
        return content

    def digest(self) -> str:
        return self.sha256

    def prepare(self) -> None:
        if isinstance(self.shard, RemoteFile):
            self.shard.prepare()


def index(shard: Path | RemoteFile) -> list[Entry]:
    """The samples of `shard`, in its order.

    Raises `InputRefused`, naming shard and member, for a tar that is compressed or cut short, and for samples without exactly
    one image or without a label; `EnvironmentProblem` for a store that refuses.
    """
    kept = cache_directory() / "shards" / f"{_key(shard)}.json"
    try:
        return [Entry(**fields) for fields in json.loads(kept.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        entries = _indexed(shard)
    with contextlib.suppress(EnvironmentProblem):  # a cache that is only read: the index is made again next time
        write_atomic(kept, json.dumps([asdict(entry) for entry in entries]).encode())
    return entries


def _key(shard: Path | RemoteFile) -> str:
    if isinstance(shard, RemoteFile):
        facts: list[Any] = [shard.url, shard.num_bytes, shard.version]
    else:
        status = shard.stat()
        facts = [str(shard.resolve()), status.st_size, status.st_mtime_ns]
    return hashlib.sha256(json.dumps([VERSION, *facts]).encode()).hexdigest()[:32]


def _indexed(shard: Path | RemoteFile) -> list[Entry]:
    path = downloads().path(shard) if isinstance(shard, RemoteFile) else shard
    try:
        if path is not None:
            with path.open("rb") as stream:
                return list(_entries(stream, shard))
        assert isinstance(shard, RemoteFile)
        system, name = opened(shard.url, f"The data {shard}")
        with store_errors(shard.url), system.open(name, "rb") as stream:
            return list(_entries(stream, shard))
    except (tarfile.TarError, EOFError) as error:
        raise InputRefused(
            f"{shard} is no whole tar ({error}): it was cut short, or is compressed. Write it again, as a plain .tar: "
            "in no other can images be read in any order, and they are compressed already."
        ) from error


def _entries(stream: IO[bytes], shard: Path | RemoteFile) -> Iterator[Entry]:
    key, files = "", {}
    for member, content in _files(stream):
        place = PurePosixPath(member.name)
        stem, _, kind = place.name.partition(".")
        if place.name.startswith("."):
            continue
        found = str(place.parent / stem)
        if files and found != key:
            yield _entry(shard, key, files)
            files = {}
        key = found
        if kind.lower() in files:
            raise InputRefused(f"{shard}: {member.name} stands there twice for one sample.")
        files[kind.lower()] = (member, content)
    if files:
        yield _entry(shard, key, files)


def _files(stream: IO[bytes]) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Each file of a tar with its content. Raises `tarfile.ReadError` where the tar has no end."""
    with tarfile.open(fileobj=stream, mode="r|", bufsize=1 << 20) as tar:
        for member in tar:
            tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]  # it would keep them all
            if member.isreg() and not member.issparse():
                extracted = tar.extractfile(member)
                assert extracted is not None
                content = extracted.read()
                if len(content) != member.size:
                    raise tarfile.ReadError("unexpected end of data")
                yield member, content
        _require_end(stream, tar.offset)


def _require_end(stream: IO[bytes], offset: int) -> None:
    """An empty block closes a tar: where another stands, or none, the reader stopped early and samples would be missing."""
    stream.seek(offset)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"no end and no file at byte {offset}")


def _entry(shard: Path | RemoteFile, key: str, files: Mapping[str, tuple[tarfile.TarInfo, bytes]]) -> Entry:
    images = [kind for kind in files if f".{kind.rpartition('.')[2]}" in EXTENSIONS]
    if len(images) != 1:
        raise InputRefused(
            f"{shard}: sample {key} has {len(images)} images among {', '.join(sorted(files))}; one is needed, beside "
            f"{key}.cls or {key}.json, and the files of a sample must stand together."
        )
    member, content = files[images[0]]
    facts = {**_json(shard, key, files), **_text(shard, key, files)}
    if not facts.get("label"):
        raise InputRefused(
            f'{shard}: sample {key} has no label: give {key}.cls (a number or a name) or {key}.json with "label".'
        )
    return Entry(
        name=member.name,
        start=member.offset_data,
        length=member.size,
        sha256=hashlib.sha256(content).hexdigest(),
        **{name: str(facts.get(name) or "") for name in ("label", "split", "slice", "key")},
    )


def _text(shard: Path | RemoteFile, key: str, files: Mapping[str, tuple[tarfile.TarInfo, bytes]]) -> dict[str, str]:
    if "cls" not in files:
        return {}
    try:
        return {"label": files["cls"][1][:LARGEST_LABEL_BYTES].decode().strip()}
    except UnicodeDecodeError as error:
        raise InputRefused(f"{shard}: {key}.cls is no UTF-8 text ({error}).") from error


def _json(shard: Path | RemoteFile, key: str, files: Mapping[str, tuple[tarfile.TarInfo, bytes]]) -> dict[str, Any]:
    if "json" not in files:
        return {}
    try:
        facts = json.loads(files["json"][1][:LARGEST_LABEL_BYTES])
        if not isinstance(facts, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise InputRefused(f"{shard}: {key}.json cannot be read ({error}).") from error
    label = facts.get("label", facts.get("cls"))
    return {**{name: facts.get(name) for name in ("split", "slice", "key")}, "label": None if label is None else str(label)}
