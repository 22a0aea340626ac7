"""Files of an object store, each fetched once into a cache on this machine.

The cache is addressed by content: a file lies under the sha256 of its bytes, and beside them stands which object (URL, size,
version) had that digest, so that equal files lie there once and a fingerprint needs no second download, even of what had to
make room. A file appears whole, by a rename, or not at all; of two processes that need it the second waits for the first. The
least recently used files go first. What the cache may not hold (TOOLKIT_CACHE_GIB) is read from the store at each use.
"""

import contextlib
import functools
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.bundle.atomic import clear_leftovers, environment_errors, locked, staging_directory, sync_file
from toolkit.bundle.machine import allowed_bytes, cache_directory
from toolkit.data.places import opened, store_errors
from toolkit.data.stored import Stored
from toolkit.errors import EnvironmentProblem, InputRefused

ATTEMPTS = 3
PAUSE_S = 0.2  # before the second attempt; twice as long before each further one
BLOCK_BYTES = 8 * 2**20
ROOM = 0.9  # to which share of its limit a full cache is emptied, so that it is not emptied at every file
VERSION_FIELDS = ("ETag", "etag", "md5Hash", "generation", "LastModified", "last_modified", "mtime", "created")


@dataclass(frozen=True, slots=True)
class RemoteFile(Stored):
    """One object as it was listed: `version` changes with its content (an ETag or a time, whatever the store gives)."""

    url: str
    num_bytes: int
    version: str

    def __str__(self) -> str:
        return self.url

    def read(self) -> bytes:
        return self.part(0, self.num_bytes)

    def part(self, start: int, length: int) -> bytes:
        """The `length` bytes from `start`. Raises as `read` does."""
        for _ in range(ATTEMPTS):
            path = downloads().path(self)
            if path is None:
                return _complete_part(self, start, length)
            try:
                with path.open("rb") as stream:
                    return os.pread(stream.fileno(), length, start)
            except FileNotFoundError:  # another run made room in this moment
                continue
        raise EnvironmentProblem(f"{self.url}: the cache {downloads().directory} is too small: set TOOLKIT_CACHE_GIB higher.")

    def digest(self) -> str:
        return downloads().digest(self)

    def prepare(self) -> None:
        downloads().path(self)

    def blocks(self) -> Iterator[bytes]:
        """The file from its beginning, in blocks, from the store. Raises as `read` does."""
        system, name = opened(self.url, f"The data {self.url}")
        with store_errors(self.url), system.open(name, "rb", block_size=BLOCK_BYTES) as stream:
            while block := stream.read(BLOCK_BYTES):
                yield block


def remote_files(url: str) -> dict[str, RemoteFile]:
    """Every file under `url` (or the one it names, as ""), by its path below it, in order of names.

    Raises `InputRefused` where there is nothing, `EnvironmentProblem` where the store refuses or its package is missing.
    """
    system, root = opened(url, f"The data {url}")
    with store_errors(url):
        system.invalidate_cache()
        found = system.find(root, detail=True)
    root = root.rstrip("/")
    files = {
        name[len(root) :].lstrip("/"): RemoteFile(system.unstrip_protocol(name), int(facts["size"] or 0), _version(facts))
        for name, facts in found.items()
    }
    if not files:
        raise InputRefused(f"{url} holds no files: correct the URL (bucket, prefix, name) or put the data there.")
    return dict(sorted(files.items()))


def downloads() -> "Downloads":
    """The cache of this machine."""
    return _downloads(cache_directory() / "downloads")


@functools.lru_cache(maxsize=4)
def _downloads(directory: Path) -> "Downloads":
    return Downloads(directory)


class Downloads:
    """Fetched files in `directory`. Any number of threads and processes may use it at once."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._guard = threading.Lock()
        self._known: dict[Path, tuple[int, dict[str, str]]] = {}  # of each list of digests: bytes read, and what they say
        self._held_bytes: int | None = None

    def path(self, file: RemoteFile) -> Path | None:
        """Where `file` lies on this machine, fetched if need be; None where the cache may not hold it."""
        found = self._found(file)
        if found is not None or file.num_bytes > self._allowed():
            return found
        with locked(self.directory / f".lock-{_key(file)[:2]}"):
            return self._found(file) or self._fetch(file)

    def digest(self, file: RemoteFile) -> str:
        """The sha256 of the file's bytes, known from its last download or found by one."""
        known = self._digest(file)
        if known is None and self.path(file) is None:
            sha256, num_bytes = hashlib.sha256(), 0
            for block in file.blocks():
                sha256.update(block)
                num_bytes += len(block)
            _require_whole(file, num_bytes)
            self._remember(file, sha256.hexdigest())
        known = known or self._digest(file)
        assert known is not None
        return known

    def _found(self, file: RemoteFile) -> Path | None:
        digest = self._digest(file)
        if digest is None:
            return None
        path = self._place(digest)
        try:
            if path.stat().st_size != file.num_bytes:  # a power cut
                path.unlink(missing_ok=True)
                return None
            os.utime(path)  # its last use
        except FileNotFoundError:
            return None
        except PermissionError:
            pass  # a cache that is only read
        return path

    def _fetch(self, file: RemoteFile) -> Path:
        self._make_room(file.num_bytes)
        with staging_directory(self.directory) as staging, environment_errors(self.directory):
            digest = _fetched(file, staging / "file")
            sync_file(staging / "file")
            os.chmod(staging / "file", 0o644)
            path = self._place(digest)
            path.parent.mkdir(exist_ok=True)
            os.replace(staging / "file", path)
        self._remember(file, digest)
        return path

    def _make_room(self, num_bytes: int) -> None:
        with self._guard:
            if self._held_bytes is None:
                clear_leftovers(self.directory)
            if self._held_bytes is None or self._held_bytes + num_bytes > self._allowed():
                self._held_bytes = self._emptied(num_bytes)
            self._held_bytes += num_bytes

    def _emptied(self, num_bytes: int) -> int:
        """How much the cache holds, after the least recently used files made way for `num_bytes` more, if they had to."""
        with locked(self.directory / ".lock"):
            entries = sorted(_entries(self.directory))
            held = sum(size for _, size, _ in entries)
            limit = allowed_bytes(self.directory, held)
            if held + num_bytes <= limit:
                return held
            for _, size, path in entries:
                if held + num_bytes <= ROOM * limit:
                    break
                path.unlink(missing_ok=True)
                held -= size
            return held

    def _allowed(self) -> int:
        return allowed_bytes(self.directory, self._held_bytes or 0)

    def _place(self, digest: str) -> Path:
        return self.directory / digest[:2] / digest

    def _list(self, file: RemoteFile) -> Path:
        parent = file.url.rpartition("/")[0]
        return self.directory / "known" / f"{hashlib.sha256(parent.encode()).hexdigest()[:16]}.jsonl"

    def _digest(self, file: RemoteFile) -> str | None:
        path, key = self._list(file), _key(file)
        with self._guard:
            offset, digests = self._known.get(path, (0, {}))
            if key not in digests:
                with contextlib.suppress(FileNotFoundError), path.open("rb") as stream:
                    stream.seek(offset)
                    whole = stream.read().rpartition(b"\n")[0]
                    for line in whole.splitlines():
                        with contextlib.suppress(ValueError):  # a line that a power cut tore
                            digests.update(json.loads(line))
                    self._known[path] = (offset + len(whole) + (1 if whole else 0), digests)
            return digests.get(key)

    def _remember(self, file: RemoteFile, digest: str) -> None:
        path = self._list(file)
        with environment_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                os.write(descriptor, json.dumps({_key(file): digest}).encode() + b"\n")
            finally:
                os.close(descriptor)


def _fetched(file: RemoteFile, path: Path) -> str:
    """Write `file` to `path`, whole, and give its sha256; what goes wrong on the way is tried again."""
    for attempt in range(ATTEMPTS):
        try:
            sha256, num_bytes = hashlib.sha256(), 0
            with path.open("wb") as stream:
                for block in file.blocks():
                    stream.write(block)
                    sha256.update(block)
                    num_bytes += len(block)
            _require_whole(file, num_bytes)
            return sha256.hexdigest()
        except (EnvironmentProblem, InputRefused) as error:
            gone = isinstance(error.__cause__, FileNotFoundError | PermissionError)
            if gone or attempt == ATTEMPTS - 1:
                raise
            time.sleep(PAUSE_S * 2**attempt)
    raise AssertionError


def _complete_part(file: RemoteFile, start: int, length: int) -> bytes:
    system, name = opened(file.url, f"The data {file.url}")
    with store_errors(file.url):
        content = system.cat_file(name, start=start, end=start + length)
    if len(content) != length:
        raise InputRefused(
            f"{file.url}: asked for {length} bytes at {start}, got {len(content)}. The file changed or was cut short, or "
            "its server cannot read parts of a file: let it be cached (TOOLKIT_CACHE_GIB)."
        )
    return content


def _require_whole(file: RemoteFile, num_bytes: int) -> None:
    if num_bytes != file.num_bytes:
        raise InputRefused(
            f"{file.url} gave {num_bytes} bytes of the {file.num_bytes} it was listed with: the transfer was cut short or the "
            "file changed. Try again, or upload it anew."
        )


def _key(file: RemoteFile) -> str:
    return hashlib.sha256(json.dumps([file.url, file.num_bytes, file.version]).encode()).hexdigest()[:32]


def _version(facts: dict[str, Any]) -> str:
    return " ".join(str(facts[name]) for name in VERSION_FIELDS if facts.get(name) is not None)


def _entries(directory: Path) -> Iterator[tuple[int, int, Path]]:
    """Last use, size and path of each cached file."""
    for path in directory.glob("[0-9a-f][0-9a-f]/*"):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            yield status.st_mtime_ns, status.st_size, path
